"""The report as one self-contained HTML page; figures (PNG) and tables (CSV, LaTeX) beside it."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from firefly_cl.benchmark import figure_style, plots
from firefly_cl.benchmark.comparison import CONTROL, compare
from firefly_cl.benchmark.configuration import flat
from firefly_cl.benchmark.exports import as_csv, as_latex, side_tables_latex
from firefly_cl.benchmark.frontier import FRONTIERS
from firefly_cl.benchmark.latency import BATCHES, newest_milliseconds
from firefly_cl.benchmark.quantities import milliseconds, percent
from firefly_cl.benchmark.records import write_atomic
from firefly_cl.benchmark.report import ScenarioSummary
from firefly_cl.benchmark.summary import Summary, mean_known
from firefly_cl.errors import FileError

_CAPTIONS = {
    "accuracy": "Test accuracy averaged over the tasks learnt so far, the task being known.",
    "class-incremental": "The same without telling the task: the class is one of all so far.",
    "matrix": "Each row is a moment: the test accuracy of every task so far, after that task. "
    "A column that stays the same colour downwards is a task that is not forgotten.",
    "size": "Floats needed to answer every task learnt so far.",
    "widths": "Units of each layer, coloured by the task that brought them.",
    "reuse": "Of each owner's units, how many the task's own units and its head read.",
    "nearest": "How well a linear probe on each older task's features tells a new task's training "
    "images apart; framed: the older task whose units were copied.",
    "rounds-flops": "The same against the operations of one image.",
    "rounds": "Validation accuracy before each growth step and at the end, against the size then; "
    "bands are a standard deviation over seeds, left out where there are many lines.",
    "frontier": "Validation accuracy of the pruned and tuned networks against their size, at each "
    "price of a unit or share kept; bars are a standard deviation over seeds. Hollow: before "
    "pruning, after the first training alone.",
    "frontier-flops": "The same against the operations of one image.",
}

_NOTE = (
    "Mean and sample standard deviation over seeds. Floats and bytes are everything kept to answer "
    "all tasks; FLOPs of one image, averaged over tasks; time of all phases of one seed."
)
_GROWTH_NOTE = (
    "Mean and sample standard deviation over seeds. Obtained: the decrease of the loss on training "
    "batches by growth steps, in percent of what the criterion had promised; step: seconds of one "
    "growth step; time of all phases of one seed."
)
_PRUNING_NOTE = (
    "Mean and sample standard deviation over seeds. Kept: floats in percent of what the network "
    "held before pruning; time of all phases of one seed."
)

_SIDE_NOTES = {
    "class-incremental": "Task-incremental: the task is told, and its head answers. "
    "Class-incremental: it is not, and the class is one of all tasks so far, by the greatest logit "
    "where heads share all else, else by the greatest probability among the classes of a task. "
    "Forgetting counts what new classes take from older ones.",
    "steps": "Means of one growth step: the decrease of the loss that the criterion promised, and "
    "what was obtained on training batches. Training: the fall of the validation loss from a step "
    "to the next; share: what the steps obtained, in percent of that.",
}

_LATENCY_NOTE = (
    "ms: milliseconds to answer one image that comes alone, timed while nothing else ran."
)

# Colours that figures are drawn in -> the page's variables, so that they follow its theme.
_THEME = {
    figure_style.INK: "var(--ink)",
    figure_style.MUTED: "var(--muted)",
    figure_style.GRID: "var(--rule)",
    figure_style.PANEL: "var(--page)",
    **{colour: f"var(--s{i})" for i, colour in enumerate(figure_style.SERIES)},
}
_DARK_SERIES = (
    "#4aa8e0",
    "#f0813a",
    "#2fc79b",
    "#e29cc4",
    "#f2b632",
    "#86cdf5",
    "#c09a74",
    "#a3acb8",
)


def write_page(path: Path, groups: Sequence[ScenarioSummary]) -> list[Path]:
    """Write the page to `path`, beside it its figures as PNG and tables as CSV and LaTeX.

    Returns the paths written.

    Raises FileError if the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"cannot make {path.parent} ({error.strerror}): choose another --html"
        ) from error
    written = []
    sections = []
    for group in groups:
        figures = []
        stem = f"{path.stem}-{group.name.replace('/', '-')}"
        texts = {".csv": as_csv(group), ".tex": as_latex(group)}
        texts |= {f"-{name}.tex": text for name, text in side_tables_latex(group).items()}
        for suffix, text in texts.items():
            file = path.with_name(stem + suffix)
            write_atomic(file, text.encode())
            written.append(file)
        for name, (title, draw) in {**plots.FIGURES, **FRONTIERS}.items():
            wide, narrow = draw(group, figure_style.WIDE), draw(group, figure_style.NARROW)
            if wide is None or narrow is None:
                continue
            image = path.with_name(f"{stem}-{name}.png")
            write_atomic(image, _png(wide))
            written.append(image)
            salt = f"{group.name}-{name}"
            figures.append(
                f"<figure>\n<h3>{html.escape(title)}</h3>\n"
                f'<div class="wide">{_svg(wide, salt, title)}</div>\n'
                f'<div class="narrow">{_svg(narrow, salt + "-narrow", title)}</div>\n'
                f"<figcaption>{html.escape(_CAPTIONS[name])}</figcaption>\n</figure>"
            )
        sections.append(_section(group, figures))
    write_atomic(path, _page(sections).encode())
    return [path, *written]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # without the version in it, the same records give the same bytes
    figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


def _svg(figure: Figure, salt: str, title: str) -> str:
    buffer = io.StringIO()
    # ids are hashed from the salt: figures of one page must not share them
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    # a hundredth of a point is enough, in coordinates: what is written stays as it is
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)
    prefix = re.sub(r"\W", "-", salt)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = text.replace('"#', f'"#{prefix}-').replace("url(#", f"url(#{prefix}-")
    for colour, variable in _THEME.items():
        text = text.replace(colour, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def _section(group: ScenarioSummary, figures: Sequence[str]) -> str:
    columns, rows = group.table()
    return "\n".join(
        [
            f"<section>\n<h2>{html.escape(group.title)}</h2>",
            _table(columns, [*rows, *group.published_rows()]),
            f'<p class="note">{_note(group)}</p>',
            *_sources(group),
            *_side_tables(group),
            *_latency(group),
            *_comparison(group),
            *figures,
            _by_task(group),
            _configurations(group),
            "</section>",
        ]
    )


def _note(group: ScenarioSummary) -> str:
    note = _PRUNING_NOTE if group.prunes else _GROWTH_NOTE if group.grows else _NOTE
    return f"{note} {_LATENCY_NOTE}" if group.has_times else note


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ['<div class="scroll"><table>', "<thead><tr>"]
    lines += [f'<th scope="col">{html.escape(cell)}</th>' for cell in head]
    lines.append("</tr></thead><tbody>")
    for first, *rest in rows:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{html.escape(first)}</th>{cells}</tr>')
    lines.append("</tbody></table></div>")
    return "\n".join(lines)


def _sources(group: ScenarioSummary) -> list[str]:
    methods: dict[str, list[str]] = {}
    for paper in group.published():
        methods.setdefault(paper.source, []).append(paper.method)
    told = [f"{', '.join(names)}: {source}" for source, names in methods.items()]
    return [f'<p class="note">Published: {html.escape("; ".join(told))}.</p>'] if told else []


def _side_tables(group: ScenarioSummary) -> list[str]:
    """The tables beside the main one."""
    parts = []
    for side in group.side_tables():
        title = side.title.removeprefix(f"{group.title}: ")
        parts += [
            f"<h3>{html.escape(title[:1].upper() + title[1:])}</h3>",
            _table(side.columns, side.rows),
            f'<p class="note">{html.escape(_SIDE_NOTES[side.name])}</p>',
        ]
    return parts


def _latency(group: ScenarioSummary) -> list[str]:
    """Milliseconds of an answer; nothing where none was timed."""
    if not group.timed:
        return []
    head = ["strategy"]
    for batch in BATCHES:
        head += [f"batch of {batch}", "newest task"]
    head += ["threads", "processor share"]
    rows = []
    for summary in group.summaries:
        timed = [record for record in summary.records if record.latency]
        row = [summary.label]
        for batch in BATCHES:
            newest = mean_known([newest_milliseconds(each.latency, batch) for each in timed])
            row += [milliseconds(summary.latency(batch)), milliseconds(newest)]
        threads = dict.fromkeys(_shown(record.hardware.get("threads")) for record in timed)
        shares = [float(record.latency["processor_share"]) for record in timed]
        row += [", ".join(threads) or "-", f"{min(shares):.2f}" if shares else "-"]
        rows.append(row)
    note = (
        "Milliseconds of one image, from pixels to logits, answered alone and in a batch: median "
        "of repeats, mean over seeds and over the first, the middle and the newest task. "
        "Processor share, the least over seeds: seconds of processor time in a second of timing; "
        "below 1 on a CPU, other programs ran there too and the figures may be too high."
    )
    return [
        "<details><summary>Time of an answer (ms)</summary>",
        _table(head, rows),
        f'<p class="note">{html.escape(note)}</p></details>',
    ]


def _comparison(group: ScenarioSummary) -> list[str]:
    """Differences to the first row and transfer; nothing where there is nothing to compare."""
    if group.grows or group.prunes or len(group.tasks()) == 1:
        return []
    head = ["strategy", "seeds in common", "difference", "p", "backward", "forward"]
    rows = [
        [
            each.label,
            str(each.seeds),
            _points(each.difference) if number else "-",
            "-" if each.p is None else f"{each.p:.2g}",
            _points(each.backward),
            _points(each.forward),
        ]
        for number, each in enumerate(compare(group))
    ]
    note = (
        f"In points of accuracy. Difference: to {group.summaries[0].label}, over the seeds that "
        "both have, with p of a two-sided paired t-test. Backward transfer: the change of a task's "
        "accuracy since it ended. Forward transfer: its accuracy when it ended, minus that of "
        f"{CONTROL}, which learns each task alone."
    )
    return [
        "<details><summary>Differences and transfer</summary>",
        _table(head, rows),
        f'<p class="note">{html.escape(note)}</p></details>',
    ]


def _points(fraction: float | None) -> str:
    text = percent(fraction)
    return f"+{text}" if fraction is not None and fraction > 0 else text


def _by_task(group: ScenarioSummary) -> str:
    head = ["task", *(summary.label for summary in group.summaries)]
    renamed = any(
        list(record.tasks) != list(group.tasks())
        for summary in group.summaries
        for record in summary.records
    )
    rows = []
    for j, name in enumerate(group.tasks()):
        finals = [
            mean_known([record.accuracy[-1][j] for record in summary.records])
            for summary in group.summaries
        ]
        label = str(j + 1) if renamed else f"{j + 1}  {name}"
        rows.append([label, *(percent(final) for final in finals)])
    return (
        "<details><summary>Accuracy of each task after the last one (%)</summary>\n"
        f"{_table(head, rows)}</details>"
    )


def _configurations(group: ScenarioSummary) -> str:
    parts = ["<details><summary>Configurations, versions and hardware</summary>"]
    for summary in group.summaries:
        parts.append(f"<h4>{html.escape(summary.label)}</h4>")
        parts.append("<dl>")
        for name, value in _facts(summary):
            parts.append(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>")
        parts.append("</dl>")
    parts.append("</details>")
    return "\n".join(parts)


def _facts(summary: Summary) -> list[tuple[str, str]]:
    record = summary.records[0]
    facts = [("seeds", ", ".join(map(str, summary.seeds)))]
    settings = {k: v for k, v in record.configuration.items() if k not in ("seed", "strategy")}
    facts += [(name, _shown(value)) for name, value in flat(settings).items() if value is not None]
    for about in ("versions", "hardware"):
        per_seed = [getattr(r, about) for r in summary.records]
        for name in dict.fromkeys(name for seed in per_seed for name in seed):
            found = dict.fromkeys(_shown(seed[name]) for seed in per_seed if name in seed)
            facts.append((name, ", ".join(found)))
    return facts


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _page(sections: Sequence[str]) -> str:
    light = "".join(f"--s{i}:{colour};" for i, colour in enumerate(figure_style.SERIES))
    dark = "".join(f"--s{i}:{colour};" for i, colour in enumerate(_DARK_SERIES))
    style = _STYLE.replace("/*light*/", light).replace("/*dark*/", dark)
    body = "\n".join(sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>firefly_cl report</title>
<style>{style}</style>
</head>
<body>
<main>
<header><h1>Continual learning report</h1></header>
{body}
</main>
</body>
</html>
"""


_STYLE = """
:root { color-scheme: light dark; --page:#ffffff; --ink:#1b1f24; --muted:#5b6672; --rule:#dde2e7;
  --stripe:#f5f7f9; /*light*/ }
@media (prefers-color-scheme: dark) {
  :root { --page:#14181d; --ink:#e8ecf0; --muted:#9aa5b1; --rule:#313941; --stripe:#1b2027;
    /*dark*/ }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 54rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; letter-spacing: -.01em; margin: 2.75rem 0 .75rem; padding-top: 1.25rem;
  border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
h4 { font-size: .9rem; margin: 1.25rem 0 .25rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .6rem; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; position: sticky; left: 0;
  background: var(--page); }
td:last-child, th:last-child { padding-right: 0; }
thead th { color: var(--muted); font-weight: 500; border-bottom: 1px solid var(--muted); }
tbody tr { border-bottom: 1px solid var(--rule); }
tbody th { font-weight: 600; white-space: pre-wrap; }
details tbody th { min-width: 7.5rem; }
.note, figcaption { color: var(--muted); font-size: .8125rem; line-height: 1.45; }
figure { margin: 2.25rem 0; }
figcaption { margin-top: .4rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
  sans-serif; }
.narrow { display: none; }
@media (max-width: 36rem) {
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.5rem; }
  table { font-size: .8125rem; }
  th, td { padding: .4rem .45rem; }
  .wide { display: none; }
  .narrow { display: block; }
}
details { border-top: 1px solid var(--rule); padding: .6rem 0; }
summary { cursor: pointer; font-weight: 600; font-size: .9375rem; }
details[open] > summary { margin-bottom: .75rem; }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .1rem 1rem;
  margin: 0; font-size: .8125rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
"""
