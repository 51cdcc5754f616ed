"""What there is to run, by name, read without importing torch."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from firefly_cl.registry import Registry


def catalogue() -> dict[str, dict[str, str]]:
    """Names and one-line descriptions of every kind of thing that `run` and `grow` take."""
    from firefly_cl.continual import STRATEGIES
    from firefly_cl.growth import CRITERIA
    from firefly_cl.scenarios import SCENARIOS
    from firefly_cl.zoo import BACKBONES

    kinds: dict[str, Registry] = {
        "scenarios": SCENARIOS,
        "strategies": STRATEGIES,
        "criteria": CRITERIA,
        "backbones": BACKBONES,
    }
    return {
        kind: {name: registry.describe(name) for name in registry.names()}
        for kind, registry in kinds.items()
    }


def print_catalogue(found: dict[str, dict[str, str]], console: Console) -> None:
    """Print the names of each kind with their descriptions."""
    widest = max((len(name) for names in found.values() for name in names), default=0)
    for kind, names in found.items():
        table = Table(title=kind, title_justify="left", box=None, show_header=False)
        table.title_style = "bold"
        table.add_column(min_width=widest, no_wrap=True, style="cyan")
        table.add_column(overflow="fold")
        for name, description in names.items():
            table.add_row(name, description)
        console.print(table)
