"""The growth of firefly_cl."""
