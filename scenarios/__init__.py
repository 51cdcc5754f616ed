"""The scenarios of firefly_cl."""
