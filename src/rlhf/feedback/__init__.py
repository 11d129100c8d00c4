"""What people said of replies: the store, its judgements as rankings, and the files that other programs read and write."""
