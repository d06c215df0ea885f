"""Data of one unit → context vector: one encoder a file, written for one unit and vmapped by the guide."""
