"""How does an answer get better? Rungs of a ladder, from what is cheap to what is exact."""
