"""The network of firefly_cl."""
