"""Invariant 4: a file gives back the same network, bit for bit, or an error in one line."""

from __future__ import annotations

import copy
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from growing_nets import (
    NAMES,
    VARIED,
    answers,
    assert_same_state,
    begin,
    images,
    net_of,
    part_reads,
    seeded,
    snapshot,
    train_steps,
    two_tasks,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from firefly_cl.errors import FileError
from firefly_cl.network import FireflyNet, extract, floats, load_net, save_net
from firefly_cl.network.edits import deselect, insert, split, unlock, widen
from firefly_cl.network.files import SCHEMA
from firefly_cl.network.rebuild import migrate


def varied_net(name: str, dtype: torch.dtype = torch.float32) -> FireflyNet:
    net = two_tasks(name, dtype=dtype)
    insert(net, net.producers(net.growable_spaces()[0])[0].name, 2, generator=seeded())
    unlock(net, net.growable_spaces()[0], torch.tensor([1]))
    deselect(net, net.growable_spaces()[-1], torch.tensor([0]))
    begin(net, 2, 1, part_reads(net, 0.5, seeded(4)))
    return net


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_network_comes_back_bit_equal(name: str, tmp_path: Path) -> None:
    net = varied_net(name).eval()
    path = tmp_path / "deep" / "net.safetensors"
    save_net(net, path, {"seed": 3})
    loaded, extra = load_net(path)
    assert extra == {"seed": 3} and not loaded.training
    x = images(5, torch.float32)
    for task, (one, other) in enumerate(zip(answers(net, x), answers(loaded, x), strict=True)):
        assert torch.equal(one, other), task
    assert_same_state(loaded, snapshot(net))
    assert loaded.widths() == net.widths() and loaded.nodes == net.nodes
    assert floats(loaded) == floats(net)
    grads = [dict(n.named_parameters()) for n in (net, loaded)]
    assert {k: p.requires_grad for k, p in grads[0].items()} == {
        k: p.requires_grad for k, p in grads[1].items()
    }
    with torch.no_grad():
        assert torch.equal(extract(loaded, 2)(x), extract(net, 2)(x))
    widen(loaded, loaded.growable_spaces()[0], 1, generator=seeded())
    assert torch.equal(answers(loaded, x)[0], answers(net, x)[0])


@pytest.mark.parametrize("wrapped", [False, True], ids=["itself", "wrapped"])
def test_weights_that_are_loaded_take_effect_at_once(wrapped: bool) -> None:
    net = varied_net("resnet9").eval()
    other, x = copy.deepcopy(net), images(5, torch.float32)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 1.5
    other.forget_plans()
    net(x, 2)  # keeps what it assembles of the weights before
    if wrapped:
        nn.ModuleList([net]).load_state_dict(nn.ModuleList([other]).state_dict())
    else:
        net.load_state_dict(other.state_dict())
    assert torch.equal(net(x, 2), other(x, 2))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("name", VARIED)
def test_resumed_training_equals_uninterrupted_training(
    name: str, kind: str, tmp_path: Path
) -> None:
    def optimizer_of(net: FireflyNet) -> torch.optim.Optimizer:
        if kind == "sgd":
            return torch.optim.SGD(net.trainable(), 0.05, momentum=0.9, weight_decay=1e-3)
        return torch.optim.AdamW(net.trainable(), 0.01)

    net = two_tasks(name, dtype=torch.float32)
    insert(net, net.producers(net.growable_spaces()[0])[0].name, 2, generator=seeded())
    x, y = images(8, torch.float32), torch.arange(8) % 4
    optimizer = train_steps(net, x, y, 2, optimizer_of(net))
    migrate(optimizer, split(net, net.growable_spaces()[0], torch.tensor([0])))
    save_net(net, tmp_path / "net.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")

    train_steps(net, x, y, 3, optimizer)
    resumed, _ = load_net(tmp_path / "net.safetensors")
    other = optimizer_of(resumed)
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    train_steps(resumed, x, y, 3, other)
    assert_same_state(resumed, snapshot(net))


def parts_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "net.safetensors"
    save_net(varied_net("mlp-bn"), path)
    return path


def refused(path: Path, match: str = "") -> str:
    with pytest.raises(FileError, match=match) as caught:
        load_net(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_an_error(saved: Path, tmp_path: Path, share: float) -> None:
    path = tmp_path / "net.safetensors"
    data = saved.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path, "damaged")


def test_files_of_other_kinds_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    refused(path, "no model file")
    refused(tmp_path)
    path.write_bytes(b"\x00" * 100)
    refused(path, "damaged")
    torch.save({"weight": torch.zeros(2)}, path)
    refused(path, "damaged")
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, path)
    refused(path, "no model of firefly_cl")


def test_a_newer_schema_is_an_error_that_says_so(saved: Path, tmp_path: Path) -> None:
    header, body = parts_of(saved.read_bytes())
    structure = json.loads(header["__metadata__"]["firefly_cl"])
    structure["schema"] = SCHEMA + 1
    header["__metadata__"]["firefly_cl"] = json.dumps(structure)
    path = tmp_path / "net.safetensors"
    path.write_bytes(joined(header, body))
    assert "update firefly_cl" in refused(path, f"schema {SCHEMA + 1}")


def branches(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON value can be damaged."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in items:
        found.append((*at, key))
        if isinstance(inner, dict | list):
            found += branches(inner, (*at, key))
    return found


@given(data=st.data())
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_damaged_structure_loads_or_is_a_file_error(
    saved: Path, tmp_path: Path, data: st.DataObject
) -> None:
    header, body = parts_of(saved.read_bytes())
    structure = json.loads(header["__metadata__"]["firefly_cl"])
    del structure["extra"]
    place = data.draw(st.sampled_from(branches(structure)))
    value = data.draw(st.sampled_from([None, -3, 99, "x", [], {}, [[0, 9]], "delete"]))
    inner = structure
    for key in place[:-1]:
        inner = inner[key]
    if value == "delete":
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    structure.setdefault("extra", {})
    header["__metadata__"]["firefly_cl"] = json.dumps(structure)
    path = tmp_path / "net.safetensors"
    path.write_bytes(joined(header, body))
    try:
        load_net(path)
    except FileError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("change", ["missing", "renamed", "shape", "extra"])
def test_tensors_that_do_not_fit_the_structure_are_errors(
    saved: Path, tmp_path: Path, change: str
) -> None:
    from safetensors.torch import load_file, save_file

    header, _ = parts_of(saved.read_bytes())
    state = load_file(saved)
    key = next(k for k in state if k.endswith("from_own") and state[k].numel())
    value = state.pop(key)
    if change == "renamed":
        state[key.replace("from_own", "other")] = value
    elif change == "shape":
        state[key] = value[:-1].clone()
    elif change == "extra":
        state |= {key: value, "layers.nowhere.blocks.0.bias": value.clone()}
    path = tmp_path / "net.safetensors"
    save_file(state, path, header["__metadata__"])
    refused(path, "does not fit together")


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FileError, match="choose another folder") as caught:
        save_net(net_of("mlp"), tmp_path / "file" / "net.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_crash_while_writing_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "net.safetensors"
    save_net(net_of("mlp"), path)
    before = path.read_bytes()

    def crash(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises((FileError, KeyboardInterrupt)) as caught:
            save_net(two_tasks("mlp"), path)
    assert isinstance(error, KeyboardInterrupt) or "No space left" in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["net.safetensors"]
    assert len(load_net(path)[0].tasks) == 1
