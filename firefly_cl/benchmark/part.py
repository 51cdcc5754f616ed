"""A part of a grid: its cells of some scenarios, strategies and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from firefly_cl.benchmark.grid import GridCell
from firefly_cl.benchmark.plan import parse_names, parse_seeds
from firefly_cl.errors import ConfigurationError
from firefly_cl.registry import suggestion

if TYPE_CHECKING:
    from firefly_cl.commands import Benchmark


@dataclass(frozen=True)
class Part:
    """Which cells: those of these scenarios, strategies and seeds; empty: of all."""

    scenarios: Sequence[str] = ()
    strategies: Sequence[str] = ()
    seeds: Sequence[int] = ()

    def has(self, found: GridCell) -> bool:
        """Whether a cell is among them."""
        return (
            (not self.scenarios or found.scenario in self.scenarios)
            and (not self.strategies or found.strategy in self.strategies)
            and (not self.seeds or found.cell.seed in self.seeds)
        )

    def check(self, cells: Sequence[GridCell]) -> None:
        """Raise ConfigurationError for a name or a seed that the grid of these cells lacks."""
        for option, asked, known in (
            ("--scenario", self.scenarios, {found.scenario: None for found in cells}),
            ("--strategy", self.strategies, {found.strategy: None for found in cells}),
        ):
            for name in asked:
                if name not in known:
                    raise ConfigurationError(
                        f"{option} has {name!r}, which is not in the grid: "
                        + suggestion(name, known)
                    )
        seeds = {found.cell.seed: None for found in cells}
        for seed in self.seeds:
            if seed not in seeds:
                raise ConfigurationError(
                    f"--seeds has {seed}, and the seeds of the grid are "
                    f"{', '.join(map(str, seeds))}: add it there, or choose among them"
                )


def part_of(command: Benchmark) -> Part:
    """What the command line asks for; raises ConfigurationError for what cannot be read."""
    return Part(
        () if command.scenario is None else parse_names(command.scenario, "--scenario"),
        () if command.strategy is None else parse_names(command.strategy, "--strategy"),
        () if command.seeds is None else parse_seeds(command.seeds),
    )
