"""The baselines of firefly_cl."""
