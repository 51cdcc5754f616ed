"""The growing network: spaces of owned units, row blocks, edits, extraction, costs, files."""

from firefly_cl.network.cost import floats, flops, own_flops, stored_bytes, task_floats
from firefly_cl.network.extract import extract
from firefly_cl.network.files import load_net, save_net
from firefly_cl.network.graph import register_map
from firefly_cl.network.net import FireflyNet
from firefly_cl.network.rules import map_call, map_module
from firefly_cl.network.space import GIVEN, Layout, Segment, Selection, Space
from firefly_cl.network.tracing import register_rule

__all__ = [
    "GIVEN",
    "FireflyNet",
    "Layout",
    "Segment",
    "Selection",
    "Space",
    "extract",
    "floats",
    "flops",
    "load_net",
    "map_call",
    "map_module",
    "own_flops",
    "register_map",
    "register_rule",
    "save_net",
    "stored_bytes",
    "task_floats",
]
