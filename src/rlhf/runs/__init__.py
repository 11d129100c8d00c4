"""The life of a run: its folder, its callbacks, a stage from start to end, all stages of a recipe."""
