"""A table of results on a terminal: what its rows are called is broken between words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_ROOMY = 8
"""With more columns, they stand closer."""

_NARROWEST = 10
"""Characters that the first column has at least."""

_WITHIN = re.compile(r"(?<=[_=/])|(?<=-)(?=[A-Za-z])")
"""Where a long word may be broken, which is not in a number."""


def text_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], console: Console
) -> Table:
    """All columns but the first are to the right and stay whole; the first has the room left."""
    rest = _table(title, ["", *columns[1:]], [["", *row[1:]] for row in rows])
    room = max(console.width - console.measure(rest).maximum, _NARROWEST)
    return _table(title, columns, [[broken(row[0], room), *row[1:]] for row in rows])


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1 if len(columns) <= _ROOMY else 0),
        collapse_padding=True,
    )
    for number, column in enumerate(columns):
        table.add_column(
            column,
            justify="right" if number else "left",
            no_wrap=bool(number),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def broken(label: str, width: int) -> str:
    """`label` on lines of `width` characters, broken between words.

    A word that is longer is broken behind a sign in it; a part that is longer still stays whole.
    """
    lines = [""]
    for word in label.split():
        gap = " "
        for part in [word] if len(word) <= width else _WITHIN.split(word):
            longer = f"{lines[-1]}{gap}{part}" if lines[-1] else part
            if lines[-1] and len(longer) > width:
                lines.append(part)
            else:
                lines[-1] = longer
            gap = ""
    return "\n".join(lines)
