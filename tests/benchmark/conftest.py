"""Fixtures for tests that run many cells."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from matplotlib.figure import Figure

from firefly_cl.benchmark import drawing


@pytest.fixture(scope="module")
def blank_pictures() -> Iterator[None]:
    """Events hold blank pictures: to draw those of a tiny run takes as long as to train it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_widths", "draw_network"):
            patch.setattr(drawing, name, lambda *_: Figure(figsize=(1, 1)))
        yield
