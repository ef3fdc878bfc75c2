"""Training: the loop, the module, the data."""
