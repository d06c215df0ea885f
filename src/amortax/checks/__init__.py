"""Checks take (joint, guide, data), never train, and say what they saw, unit by unit, and what they are blind to."""
