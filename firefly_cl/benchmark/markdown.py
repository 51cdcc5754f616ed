"""Tables in Markdown files, redrawn from records between their markers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from firefly_cl.benchmark.records import write_atomic
from firefly_cl.benchmark.report import ScenarioSummary
from firefly_cl.errors import FileError

# A marker must stand alone on its line, so that text may speak of markers.
_TABLE = re.compile(
    r"^(?P<start><!-- table:(?P<name>\S+) -->)[ \t]*(?P<line>\r?\n)"
    r"(?P<old>.*?)(?P<end>^<!-- /table -->)",
    re.MULTILINE | re.DOTALL,
)
_MARKER = re.compile(r"^<!-- (?:table:\S+|/table) -->", re.MULTILINE)


def redraw(path: Path, groups: Sequence[ScenarioSummary]) -> None:
    """Replace the tables between `<!-- table:NAME -->` and `<!-- /table -->` in `path`.

    NAME is the name of a group, and for its side tables that with /class-incremental or /steps;
    tables of other names stay as they are. A file that does not exist is made with every table.
    Raises FileError if no marker fits or one has no end.
    """
    titles = {group.name: group.title for group in groups}
    tables = {group.name: table(group) for group in groups}
    for group in groups:
        for side in group.side_tables():
            name = f"{group.name}/{side.name}"
            titles[name], tables[name] = side.title, drawn(side.columns, side.rows)
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        text = "\n".join(
            f"## {title}\n\n<!-- table:{name} -->\n<!-- /table -->\n"
            for name, title in titles.items()
        )
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read {path} ({error}): name a Markdown file in UTF-8") from None
    found = list(_TABLE.finditer(text))
    markers = len(_MARKER.findall(text))
    if markers != 2 * len(found) or any(_MARKER.search(match["old"]) for match in found):
        raise FileError(
            f"{path} has a table marker without its partner: "
            "end each <!-- table:NAME --> with <!-- /table --> on a line of its own"
        )
    if not any(match["name"] in tables for match in found):
        raise FileError(
            f"{path} has no marker for {', '.join(tables)}: put "
            f"<!-- table:{next(iter(tables))} --> and <!-- /table --> on two lines of it"
        )

    def replaced(match: re.Match[str]) -> str:
        if match["name"] not in tables:
            return match[0]
        line = match["line"]
        drawn = tables[match["name"]].replace("\n", line)
        return f"{match['start']}{line}{drawn}{line}{match['end']}"

    new = _TABLE.sub(replaced, text)
    if new != text or not path.exists():
        write_atomic(path, new.encode())


def table(group: ScenarioSummary) -> str:
    """One scenario's table in Markdown, published figures below; without a last line break."""
    columns, rows = group.table()
    return drawn(columns, [*rows, *group.published_rows()])


def drawn(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, all but its first column to the right."""
    lines = ["| " + " | ".join(map(_escaped, row)) + " |" for row in [columns, *rows]]
    rule = "|" + "|".join(["---", *["---:"] * (len(columns) - 1)]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def redraw_measured(
    record: Path, page: Path, name: str, table: Callable[[dict[str, Any]], str]
) -> None:
    """Replace the table `name` of `page` by that of a JSON record; raises FileError."""
    try:
        text = table(json.loads(record.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise FileError(f"no {record}: measure first, without --draw") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"{record} cannot be read ({error!r}): measure again") from None
    redraw_table(page, name, text)


def redraw_table(page: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of table `name` in `page`; raises FileError."""
    try:
        old = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read {page} ({error}): name a Markdown file in UTF-8") from None
    found = next((match for match in _TABLE.finditer(old) if match["name"] == name), None)
    if found is None:
        raise FileError(
            f"{page} has no <!-- table:{name} --> and <!-- /table --> on lines of their own: "
            "add them"
        )
    new = f"{old[: found.start('old')]}{text}\n{old[found.end('old') :]}"
    write_atomic(page, new.encode())
