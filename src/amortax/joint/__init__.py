"""What the model says: a NumPyro program read once, probed, and evaluated one unit at a time."""
