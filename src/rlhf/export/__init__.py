"""The way out: a finished run as a model that other programs load, held against the run before it appears."""
