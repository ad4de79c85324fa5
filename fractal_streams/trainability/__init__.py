"""Train a network at every point of a plane of hyperparameters: scans, zooms, dimensions and streams."""
