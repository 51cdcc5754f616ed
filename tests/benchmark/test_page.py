"""The page: self-contained, its figures present and repeatable, labels apart with 20 tasks."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from benchmark_fakes import record
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle

from firefly_cl.benchmark import figure_style, heat_maps, plots
from firefly_cl.benchmark.page import write_page
from firefly_cl.benchmark.report import ScenarioSummary, summaries
from firefly_cl.errors import FileError


def group(n_tasks: int = 20, strategies: int = 5, layers: int = 18) -> ScenarioSummary:
    names = ["firefly", "individual", "replay", "ewc", "naive", "joint", "agem"][:strategies]
    records = [
        record(name, seed, n_tasks, forgets=0.02 * at, layers=layers)
        for at, name in enumerate(names)
        for seed in range(2)
    ]
    asked = [
        replace(each, class_incremental={"rule": "logit", "accuracy": each.accuracy})
        for each in records
    ]
    return summaries(asked)[0]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "path", "use", "rect", "image"):
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    path = folder / "sub" / "report.html"
    groups = [group(5, 3, 3), summaries([record("na<i>ve", n_tasks=2, scenario_name="b")])[0]]
    write_page(path, groups)
    return path


def test_the_page_needs_nothing_else(page: Path):
    tags = Tags()
    tags.feed(page.read_text())
    assert all(link.startswith(("#", "data:")) for link in tags.links)
    assert "@import" not in page.read_text() and "<script" not in page.read_text()


def test_ids_are_unique_and_references_resolve(page: Path):
    tags = Tags()
    text = page.read_text()
    tags.feed(text)
    assert len(tags.ids) == len(set(tags.ids))
    used = {link[1:] for link in tags.links if link.startswith("#")}
    used |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert used and used <= set(tags.ids)


def test_tags_are_closed_and_names_escaped(page: Path):
    tags = Tags()
    tags.feed(page.read_text())
    assert tags.open == []
    assert "na<i>ve" not in page.read_text()


def test_light_dark_and_phone(page: Path):
    text = page.read_text()
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    # no colour of the light theme is left in a figure
    for figure in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert not set(re.findall(r"#[0-9a-f]{6}\b", figure)) & {
            figure_style.INK,
            figure_style.MUTED,
            figure_style.GRID,
            figure_style.PANEL,
        }


def test_png_files_stand_beside_the_page(page: Path):
    names = {path.name for path in page.parent.glob("*.png")}
    drawn = {name for name in plots.FIGURES if not name.startswith("rounds")}
    assert {f"report-split-digits-{name}.png" for name in drawn} <= names
    assert not any("rounds" in name for name in names)  # several tasks
    assert "report-b-widths.png" not in names  # nobody grew there
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in page.parent.glob("*.png"))


def test_redrawing_changes_no_byte(page: Path, tmp_path: Path):
    again = tmp_path / "report.html"
    groups = [group(5, 3, 3), summaries([record("na<i>ve", n_tasks=2, scenario_name="b")])[0]]
    for path in write_page(again, groups):
        assert path.read_bytes() == (page.parent / path.name).read_bytes()


def test_a_learner_that_answers_only_at_the_end_is_one_point():
    waiting = replace(record("joint", n_tasks=3), accuracy=[[None] * 3, [None] * 3, [0.5] * 3])
    figure = plots.accuracy_over_tasks(summaries([waiting])[0], figure_style.WIDE)
    assert figure is not None
    (line,) = figure.axes[0].get_lines()
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([3], [50.0])


def test_the_nearest_older_tasks_are_framed():
    figure = heat_maps.nearest_tasks(group(4, 1), figure_style.WIDE)
    assert figure is not None
    panel = figure.axes[0]
    frames = [patch.get_xy() for patch in panel.patches if isinstance(patch, Rectangle)]
    assert frames == [(0, 1), (1, 2), (1, 3)]
    drawn = panel.collections[0].get_array()
    assert [float(drawn[down, across]) for across, down in frames] == pytest.approx([90.0] * 3)
    assert bool(drawn.mask[0].all()) and bool(drawn.mask[2, 2])  # no older task than the first


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="--html"):
        write_page(tmp_path / "file" / "report.html", [group(2, 1)])


@pytest.mark.parametrize(
    "size", [figure_style.WIDE, figure_style.NARROW], ids=lambda size: size.name
)
@pytest.mark.parametrize("name", plots.FIGURES)
@pytest.mark.parametrize(("tasks", "strategies"), [(20, 7), (1, 1), (10, 4)])
def test_no_labels_overlap(name: str, size: figure_style.Size, tasks: int, strategies: int):
    figure = plots.FIGURES[name][1](group(tasks, strategies), size)
    if figure is None:
        assert (name in ("widths", "reuse", "nearest") and tasks == 1) or name.startswith("rounds")
        return
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    width, height = canvas.get_width_height()
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        for axis in (axes.xaxis, axes.yaxis):
            boxes = [
                tick.label1.get_window_extent(renderer)
                for tick in axis.get_major_ticks()
                if tick.label1.get_text() and tick.label1.get_visible()
            ]
            boxes.sort(key=lambda box: (box.x0, box.y0))
            for one in range(len(boxes)):
                for two in range(one + 1, len(boxes)):
                    assert not boxes[one].shrunk(0.98, 0.7).overlaps(boxes[two].shrunk(0.98, 0.7))
        for text in (axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label):
            if text.get_text():
                box = text.get_window_extent(renderer)
                assert box.x0 >= -1 and box.x1 <= width + 1
                assert box.y0 >= -1 and box.y1 <= height + 1
    titles = [axes._left_title for axes in figure.axes if axes._left_title.get_text()]
    boxes = [title.get_window_extent(renderer) for title in titles]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    for one in range(len(boxes)):
        assert boxes[one].x0 >= -1 and boxes[one].x1 <= width + 1
        for two in range(one + 1, len(boxes)):
            assert not boxes[one].shrunk(0.98, 0.8).overlaps(boxes[two].shrunk(0.98, 0.8))
