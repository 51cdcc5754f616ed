"""Whether two run folders hold the same run."""

from __future__ import annotations

import json
from pathlib import Path

LOCK = (".lock", ".lock.holder")
"""Of the second, what a process leaves that is killed when its record is finished."""


def assert_same_run(one: Path, other: Path, *parts: str) -> None:
    """Every file but the events is the same, times and `parts` of the record left out."""
    contents = []
    for folder in (one, other):
        record = json.loads((folder / "record.json").read_text())
        assert all(value >= 0 for value in record["seconds"].values())
        for part in ("seconds", "latency", *parts):
            del record[part]
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
            and path.name not in ("record.json", *LOCK)
            and "events" not in path.parts
        }
        sums = json.loads(files.pop("model/checksums.json"))["sha256"]
        del sums["record.json"]  # which holds the seconds
        contents.append((record, sums, files))
    assert contents[0][0] == contents[1][0]
    assert contents[0][1] == contents[1][1]
    assert contents[0][2].keys() == contents[1][2].keys()
    assert contents[0][2] == contents[1][2]
    assert sorted(path.name for path in other.iterdir() if path.name not in LOCK) == [
        "events",
        "model",
        "probe.safetensors",
        "record.json",
    ]
