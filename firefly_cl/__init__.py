"""Continual learning by firefly neural architecture descent."""

__version__ = "0.1.0"
