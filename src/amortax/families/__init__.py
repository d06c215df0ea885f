"""Context → distribution on R^d: one family a file, written for one unit and vmapped by the guide."""
