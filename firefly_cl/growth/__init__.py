"""Growth: which units to add, by how much the loss is expected to fall for what they cost."""

from firefly_cl.registry import Registry

CRITERIA = Registry("criterion", "firefly_cl.growth")
