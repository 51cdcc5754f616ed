"""The benchmark of firefly_cl."""
