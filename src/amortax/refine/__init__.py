"""Repair: units whose q is not good enough get better answers, rung by rung, and say which rung they ended on."""
