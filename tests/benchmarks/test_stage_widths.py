"""benchmarks/stage_widths.py compares networks of equal floats on validation images alone."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from script_module import ROOT, script_module

from firefly_cl.benchmark.records import find_records, read_record
from firefly_cl.errors import ConfigurationError, FileError
from firefly_cl.zoo import BACKBONES

PAGE = "before\n<!-- table:stage-widths -->\n<!-- /table -->\nafter\n"


@pytest.fixture(scope="module")
def stage_widths() -> ModuleType:
    return script_module("stage_widths")


def test_shapes_have_equal_floats(stage_widths: ModuleType) -> None:
    even = BACKBONES.get("vgg19")(100, constant_width=16)
    floats = sum(p.numel() for p in even.parameters())
    for shape in stage_widths.SHAPES:
        net = BACKBONES.get(stage_widths.register(shape))(100)
        assert sum(p.numel() for p in net.parameters()) == pytest.approx(floats, rel=0.01)


def test_the_even_shape_is_the_constant_vgg19(stage_widths: ModuleType) -> None:
    nets = [
        BACKBONES.get(name)(100, constant_width=16, generator=torch.Generator().manual_seed(0))
        for name in (stage_widths.register("16-16-16-16-16"), "vgg19")
    ]
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(*(net.eval()(x) for net in nets))


def test_records_are_kept_and_drawn(stage_widths: ModuleType, tmp_path: Path) -> None:
    page, out = tmp_path / "page.md", tmp_path / "runs"
    page.write_text(PAGE)
    asked = {"data": "digits", "shapes": "1-1-1-1-1,2-1-1-1-1", "seeds": "0", "epochs": 1}
    stage_widths.main(**asked, out=out, page=page, threads=1)
    drawn = page.read_text()
    assert drawn.startswith("before\n") and drawn.endswith("after\n")
    assert "| 1-1-1-1-1 | 1 |" in drawn and "| 2-1-1-1-1 | 1 |" in drawn

    records = [read_record(path) for path in find_records([out])]
    assert [record.configuration["evaluate_on"] for record in records] == ["validation"] * 2
    page.write_text(PAGE)
    stage_widths.main(out=out, page=page, draw=True)
    assert page.read_text() == drawn


def test_errors_say_what_to_do(stage_widths: ModuleType, tmp_path: Path) -> None:
    for shape in ("16-16", "16-16-16-16-x", "0-1-1-1-1", "1--1-1-1-1"):
        with pytest.raises(ConfigurationError, match="channels of 5 stages"):
            stage_widths.parse_shape(shape)
    with pytest.raises(FileError, match="does not exist"):
        stage_widths.main(out=tmp_path / "none", page=tmp_path / "page.md", draw=True)


def test_the_page_shows_the_records(stage_widths: ModuleType, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "growth.md").read_text()
    page = tmp_path / "growth.md"
    page.write_text(text)
    stage_widths.main(page=page, draw=True)
    assert page.read_text() == text
