"""Number format and memory layout of training and answers, as the hardware does best."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from firefly_cl.continual.recipe import Recipe
from firefly_cl.network.layers import overruns


@lru_cache(maxsize=8)
def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 in hardware (AVX512-BF16, AMX, or CUDA with bf16)."""
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if device.type != "cpu":
        return False
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        found = capabilities()
        return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    processor = Path("/proc/cpuinfo")  # older torch; elsewhere than on Linux: no
    flags = processor.read_text().split() if processor.exists() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags


@dataclass(frozen=True)
class Precision:
    """Autocast format (None: plain float32) and whether images are channels_last in training."""

    autocast: torch.dtype | None
    channels_last: bool

    @classmethod
    def of(cls, recipe: Recipe, device: torch.device) -> Precision:
        """What `recipe` asks for on `device`; "auto" takes bfloat16 only where it is fast.

        Images are channels_last on CPUs, which convolve few channels faster then, and on GPUs in
        bfloat16.
        """
        fast = has_fast_bfloat16(device)
        half = recipe.precision == "bfloat16" or (recipe.precision == "auto" and fast)
        last = device.type == "cpu" or (half and fast)
        layout = last if recipe.channels_last is None else recipe.channels_last
        return cls(torch.bfloat16 if half else None, layout)

    def safe_for(self, model: nn.Module) -> Precision:
        """The same, or plain layout where a convolution of `model` needs it (`overruns`).

        Also where training is in bfloat16: importances are measured in float32.
        """
        plainly = any(
            overruns(part.kernel_size, part.stride, part.in_channels)
            for part in model.modules()
            if isinstance(part, nn.Conv2d) and part.weight.device.type == "cpu"
        )
        return replace(self, channels_last=False) if plainly else self

    @contextmanager
    def forward(self, device: torch.device) -> Iterator[None]:
        """Around a forward pass in training."""
        if self.autocast is None:
            yield
            return
        # The weights change at every step: a cache of their casts would never be hit.
        with torch.autocast(device.type, dtype=self.autocast, cache_enabled=False):
            yield


def answering_layout(model: nn.Module, device: torch.device) -> torch.memory_format:
    """Memory layout of the images that `model` answers in float32, as fast as is safe."""
    safe = Precision(None, channels_last=device.type == "cpu").safe_for(model)
    return torch.channels_last if safe.channels_last else torch.contiguous_format


@torch.no_grad()
def lay_out(model: nn.Module, *, channels_last: bool) -> None:
    """Store the weights of `model` channels_last or plainly, in place.

    Plain storage is rewritten even where strides are ambiguous (1x1 kernels), because the
    kernel that a convolution takes, hence its last bits, depends on the strides: a model that
    was trained and the same one read from a file then answer bit-equally.
    """
    if channels_last:
        model.to(memory_format=torch.channels_last)
        return
    for values in (*model.parameters(), *model.buffers()):
        plain = torch.empty(values.shape, dtype=values.dtype, device=values.device)
        if plain.stride() != values.stride():
            values.data = plain.copy_(values)
