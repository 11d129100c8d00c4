"""Several processes, each with a device, that make the run of one: the same weights, the same batch, each its share of the work."""
