"""The zoo of firefly_cl."""
