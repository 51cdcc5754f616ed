"""Scaled-sigmoid gates: which units are worth their cost, and the removal of the others."""
