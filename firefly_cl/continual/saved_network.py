"""A saved firefly network as a function; answers without Avalanche, which takes seconds to load."""

from __future__ import annotations

from pathlib import Path

from firefly_cl.continual.answer import answer_task
from firefly_cl.continual.learner import Logits
from firefly_cl.continual.views import Views
from firefly_cl.errors import ConfigurationError, FileError
from firefly_cl.network import load_net

WEIGHTS = "model.safetensors"


def load(folder: Path) -> Logits:
    """The saved network as a function (task, uint8 images) -> logits; raises FileError."""
    net, extra = load_net(folder / WEIGHTS)
    try:
        inputs = {key: tuple(extra[key]) for key in ("image_shape", "mean", "std")}
        views = Views(bool(extra.get("mirrored", False)), int(extra.get("shifted", 0)))
    except (KeyError, TypeError, ValueError, ConfigurationError) as error:
        raise FileError(f"{folder / WEIGHTS} says nothing of its inputs: train again") from error
    return lambda task, images: answer_task(net, task, images, **inputs, views=views)
