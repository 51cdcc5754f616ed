"""Views of an image: what a network is asked about one image, and how many times."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from firefly_cl.errors import ConfigurationError
from firefly_cl.scenarios import normalise

Laterals = Callable[[float], AbstractContextManager[None]]
"""How often what a network's lateral head adds counts inside: `lateral_factor` of a network."""


@dataclass(frozen=True)
class Views:
    """An answer is the mean of the logits of all views; one view is the image as it is.

    A lateral head is asked about the `unshifted` ones alone: it computes several older networks,
    and was fitted on such views.

    mirrored: each view also mirrored left to right. shifted: beside the image stand its shifts by
    so many pixels along each axis and both diagonals, nine views in all, with black pixels where
    the image ends, as in the random crops of training (averaged crops: Krizhevsky, Sutskever,
    Hinton 2012, section 4.1). Raises ConfigurationError.
    """

    mirrored: bool = False
    shifted: int = 0

    def __post_init__(self) -> None:
        if self.shifted < 0:
            raise ConfigurationError(f"shifted is {self.shifted}: give pixels, 0 or more")

    def __len__(self) -> int:
        return self.unshifted * (9 if self.shifted else 1)

    @property
    def unshifted(self) -> int:
        """How many views, the first ones, are not shifted."""
        return 2 if self.mirrored else 1

    def fit(self, image_shape: Sequence[int]) -> Views:
        """These, if images (C, H, W) can be shifted so far; raises ConfigurationError."""
        side = min(image_shape[1:])
        if self.shifted >= side:
            raise ConfigurationError(
                f"shifted is {self.shifted}, which leaves nothing of images of {side} pixels: "
                f"give less than {side}"
            )
        return self

    def of(self, inputs: Tensor, mean: Sequence[float], std: Sequence[float]) -> Iterator[Tensor]:
        """The views, each as `inputs`: images (n, C, H, W) that `mean` and `std` have normalised.

        The first are the inputs themselves.
        """
        yield inputs
        if self.mirrored:
            yield inputs.flip(-1)
        if not self.shifted:
            return
        margin, (height, width) = self.shifted, inputs.shape[-2:]
        black = normalise(torch.zeros(1, inputs.shape[1], 1, 1), mean, std).to(inputs.device)
        shape = (*inputs.shape[:2], height + 2 * margin, width + 2 * margin)
        framed = black.expand(shape).clone()
        framed[..., margin:-margin, margin:-margin] = inputs
        for y, x in self._shifts():
            # written anew: strides may steer which kernel runs, hence the last bits of an answer
            view = framed[..., y : y + height, x : x + width].contiguous()
            yield view
            if self.mirrored:
                yield view.flip(-1)

    def answer(
        self,
        forward: Callable[[Tensor], Tensor],
        inputs: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        most: int,
        layout: torch.memory_format = torch.contiguous_format,
        laterals: Laterals | None = None,
    ) -> Tensor:
        """Mean logits (n, classes), float32, over the views of `inputs`, which are as for `of`.

        `forward` is asked about several views at once, as many as make a batch of at most `most`
        images, in the memory layout `layout`. laterals: of the network, where it has a lateral head
        for these logits.
        """
        n, at_once = len(inputs), max(1, most // max(len(inputs), 1))
        sums: list[Tensor] = []
        for counted, views in self.shares(self.of(inputs, mean, std), laterals):
            with counted:
                while some := list(itertools.islice(views, at_once)):
                    batch = torch.cat(some) if len(some) > 1 else some[0]
                    logits = forward(batch.contiguous(memory_format=layout)).float()
                    sums.append(logits.reshape(len(some), n, *logits.shape[1:]).sum(0))
        return torch.stack(sums).sum(0) / len(self)

    def shares(
        self, views: Iterator[Tensor], laterals: Laterals | None
    ) -> Iterator[tuple[AbstractContextManager[None], Iterator[Tensor]]]:
        """`views`, as `of` gives them, in parts, each with the context to ask about them in.

        Then the mean of what is answered has the mean of the lateral head over unshifted views.
        """
        if laterals is None:
            yield nullcontext(), views
        else:
            yield laterals(len(self) / self.unshifted), itertools.islice(views, self.unshifted)
            yield laterals(0.0), views

    def _shifts(self) -> list[tuple[int, int]]:
        ends = (0, self.shifted, 2 * self.shifted)
        return [(y, x) for y in ends for x in ends if (y, x) != (self.shifted, self.shifted)]
