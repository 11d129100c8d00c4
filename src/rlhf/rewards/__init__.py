"""Everything that scores replies: rules, reward models, classifiers, and what the configuration calls them."""
