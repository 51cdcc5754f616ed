"""benchmarks/growth_step.py times what it says: a growth step between training steps."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest
import torch
from script_module import ROOT, script_module

from firefly_cl.errors import ConfigurationError, FileError

PAGE = "before\n<!-- table:growth-step -->\n<!-- /table -->\nafter\n"


@pytest.fixture(scope="module")
def growth_step() -> ModuleType:
    return script_module("growth_step")


@pytest.fixture(scope="module")
def small(growth_step: ModuleType):
    return growth_step.Settings(
        backbone="mlp",
        channels=4,
        candidates=3,
        batches=2,
        images=25,
        image_size=4,
        classes=3,
        batch_size=4,
        steps=5,
        repeats=2,
        warmup=1,
    )


def test_what_is_published_is_what_was_promised(growth_step: ModuleType) -> None:
    settings = growth_step.Settings()
    assert (settings.backbone, settings.channels, settings.candidates) == ("vgg19", 16, 70)
    assert (settings.images, settings.image_size) == (50_000, 32)
    assert settings.epoch == 782  # 781.25 batches of 64


def test_growth_leaves_the_network_that_trains_alone(growth_step: ModuleType, small) -> None:
    ticks = count()
    watch = growth_step.Stopwatch(small, lambda: float(next(ticks)))
    before = {name: value.clone() for name, value in watch.net.state_dict().items()}
    seconds, units = watch.grow(0)
    assert seconds == 1 and units > 0
    after = watch.net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert watch.train(3) == 1
    assert not all(torch.equal(after[name], value) for name, value in before.items())


def test_the_record_is_written_and_drawn(growth_step: ModuleType, small, tmp_path: Path) -> None:
    record, page = tmp_path / "records" / "growth_step.json", tmp_path / "page.md"
    page.write_text(PAGE)
    growth_step.main(small, record, page, threads=1)
    content = json.loads(record.read_text())
    assert len(content["pairs"]) == 2 and content["settings"]["candidates"] == 3
    assert all(pair[key] > 0 for pair in content["pairs"] for key in ("growth", "epoch", "units"))
    drawn = page.read_text()
    assert drawn.startswith("before\n") and drawn.endswith("after\n")
    assert "5 training steps; an epoch is 7 times their mean" in drawn

    page.write_text(PAGE)
    growth_step.main(small, record, page, draw_only=True)
    assert page.read_text() == drawn


def test_the_ratio_is_that_of_pairs(growth_step: ModuleType) -> None:
    pairs = [{"growth": g, "epoch": e} for g, e in ((1.0, 4.0), (6.0, 8.0), (2.0, 4.0))]
    record = {
        "settings": vars(growth_step.Settings()),
        "method": "so",
        "hardware": {"processor": "P", "threads": 1},
        "versions": {"torch": "2"},
        "parameters": 10,
        "pairs": pairs,
    }
    drawn = growth_step.table(record)
    assert "| growth step, s | 2.0 (1.5-4.0) |" in drawn
    assert "| growth step / epoch | 0.50 (0.38-0.62) |" in drawn


def test_errors_say_what_to_do(growth_step: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="measure first"):
        growth_step.draw(tmp_path / "none.json", tmp_path / "page.md")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(FileError, match="measure again"):
        growth_step.draw(tmp_path / "bad.json", tmp_path / "page.md")
    with pytest.raises(ConfigurationError, match="repeats is 0"):
        growth_step.Settings(repeats=0)
    with pytest.raises(ConfigurationError, match="steps must be 2 or more"):
        growth_step.Settings(steps=1)


def test_the_page_shows_the_record(growth_step: ModuleType, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    assert text.count("<!-- table:growth-step -->") == 1
    record = ROOT / "benchmarks" / "records" / "growth_step.json"
    page = tmp_path / "performance.md"
    page.write_text(text)
    growth_step.draw(record, page)
    assert page.read_text() == text
