"""Every growth criterion inside the strategy: every task grows, and nothing is forgotten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from growing_streams import RECIPE, answers, growing, stream_of

from firefly_cl import cli
from firefly_cl.benchmark.records import read_record
from firefly_cl.continual.plan import Plan

PEERS = (
    "uniform",
    "random",
    "random-search",
    "net2net",
    "gradmax",
    "tiny",
    "firefly-split",
    "firefly-new",
)


@pytest.mark.parametrize("name", PEERS)
def test_each_task_grows_and_the_first_stays_to_the_bit(name: str) -> None:
    stream = stream_of([((0, 1), 32), ((2, 3), 32)])
    plan = Plan(seed=0.5, growth=0.5, grow_at=(0.5,), criterion=name)
    strategy = growing("mlp-bn", plan=plan, recipe=RECIPE)
    first, second = stream.train_stream
    strategy.train(first, eval_streams=[])
    images = torch.stack([stream.test_stream[0].dataset[i][0] for i in range(16)])
    before = answers(strategy.model, 0, images)
    strategy.train(second, eval_streams=[])
    assert torch.equal(answers(strategy.model, 0, images), before)
    assert [event["task"] for event in strategy.firefly.events] == [0, 1]
    kept = [event["kinds"] for event in strategy.firefly.events]
    assert name == "firefly-split" or all(kept)


def test_the_command_line_takes_a_criterion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "split-digits", "--strategy", "firefly", "--option", "criterion=uniform"]
    arguments += ["--tasks", "2", "--epochs", "2", "--threads", "1", "--json"]
    assert cli.execute(cli._parse([*arguments, "--out", str(tmp_path)])) == 0
    (run,) = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    assert run["average_forgetting"] == 0
    (record,) = [path.parent for path in tmp_path.rglob("record.json")]
    events = read_record(record).growth_events
    assert events and all(set(event["kinds"]) == {"new"} for event in events)
    for event in events:
        counts = event["spaces"].values()
        assert max(counts) - min(counts) <= 1
