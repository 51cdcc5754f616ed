"""Weight decay of copies towards where they began, in place of zero (L2-SP)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from firefly_cl.network import FireflyNet
from firefly_cl.network.layers import GrowableLayer
from firefly_cl.network.rebuild import Edit, share_out
from firefly_cl.network.space import Selection


class Anchor:
    """Where the weights of a task's copies began, kept while they train and the network changes.

    Li, Grandvalet, Davoine 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional
    Networks", arXiv 1802.01483, equation 2: the penalty is decay / 2 |w - w0|^2 in place of
    decay / 2 |w|^2, with the optimizer's own decay. Weights of convolutions and linear layers have
    an anchor; norms, biases, heads and units that are no copies decay as ever.
    """

    def __init__(self) -> None:
        self._start: dict[nn.Parameter, Tensor] = {}

    def take(self, net: FireflyNet, originals: Selection) -> None:
        """Anchor the newest task's weights where they are now; forget those of the task before.

        originals: by space, the units that its own units are copies of.
        """
        self._start = {}
        for layer in net.layers.values():
            if not isinstance(layer, GrowableLayer):
                continue
            block, spaces = layer.block(net.current), {part.space for part in layer.writes}
            if block is not None and spaces <= originals.keys():
                for weight in (block.from_old, block.from_own):
                    self._start[weight] = weight.detach().clone()

    @torch.no_grad()
    def pull(self, optimizer: torch.optim.Optimizer) -> None:
        """Before a step: what the decay of `optimizer` lacks to go to the anchor, not to zero."""
        decoupled = isinstance(optimizer, torch.optim.AdamW)
        for group in optimizer.param_groups:
            decay = group.get("weight_decay", 0.0)
            for parameter in group["params"]:
                start = self._start.get(parameter)
                if start is None or parameter.grad is None or not decay:
                    continue
                if decoupled:  # the step multiplies by 1 - shrinking before it adds
                    shrinking = group["lr"] * decay
                    parameter.add_(start, alpha=shrinking / (1 - shrinking))
                else:
                    parameter.grad.add_(start, alpha=-decay)

    def follow(self, edit: Edit) -> None:
        """Go with the units: fresh ones are drawn to zero, divided ones each to their share."""
        for moved in edit.moved:
            start = self._start.pop(moved.old, None)
            if start is not None:
                start = moved.carry(start)
                shared = start if moved.shares is None else share_out(start, moved.shares)
                self._start[moved.new] = shared

    def state(self, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
        """The anchors by name of their parameter."""
        return {names[parameter]: start for parameter, start in self._start.items()}

    def restore(self, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
        """Take up what `state` told."""
        self._start = {
            parameters[name]: start.to(parameters[name].device) for name, start in state.items()
        }
