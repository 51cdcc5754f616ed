"""The continual of firefly_cl."""
