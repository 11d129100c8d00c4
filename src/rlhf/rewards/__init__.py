"""Everything that scores replies: rules, reward models, classifiers, and the names that the configuration gives them."""
