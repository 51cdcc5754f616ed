"""Strategies: what learns a stream of tasks; `STRATEGIES` finds them by name."""

from firefly_cl.registry import Registry

STRATEGIES = Registry("strategy", "firefly_cl.baselines", "firefly_cl.continual")
