"""Every baseline learns a small stream, repeats itself by seed, and survives its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_training import accuracy

from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.learner import Setup, load_logits
from firefly_cl.errors import ConfigurationError, DataError, FileError
from firefly_cl.scenarios import SCENARIOS, Images, Scenario, ScenarioOptions, Task

BASELINES = [
    "agem",
    "der",
    "er-ace",
    "ewc",
    "ewc-online",
    "gdumb",
    "gem",
    "icarl",
    "individual",
    "joint",
    "lwf",
    "mas",
    "naive",
    "packnet",
    "pnn",
    "replay",
    "si",
    "wsn",
]
KEEP_NOTHING_ELSE = ("individual", "lwf", "packnet")


def test_every_baseline_is_listed() -> None:
    assert set(BASELINES) <= set(STRATEGIES.names())


@pytest.mark.parametrize("name", BASELINES)
def test_learns_two_tasks_of_digits(
    name: str, digits: Scenario, trained: Callable[..., Any]
) -> None:
    # With half of its weights, or half of its loss on remembered images, one needs longer.
    changes = {"recipe": {"epochs": 12}} if name in ("packnet", "er-ace") else {}
    learner = trained(name, digits, **changes)
    assert learner.tasks_trained == 2
    # The newest task of each, and both where nothing or little is forgotten.
    assert accuracy(learner, digits, 1) >= 0.93
    if name != "naive":
        assert accuracy(learner, digits, 0) >= 0.93
    assert learner.seconds["train"] > 0


@pytest.mark.parametrize(
    ("name", "options", "budget"),
    [
        ("packnet", {}, None),
        ("wsn", {}, None),
        ("ewc", {}, None),
        ("firefly", {"growth": "4", "seed": "0.25", "grow_at": "0.3"}, 4000),
    ],
)
def test_the_first_tasks_of_a_stream_are_learnt_as_in_the_whole(
    name: str,
    options: dict[str, str],
    budget: int | None,
    three_digits: Scenario,
    setup_for: Callable[..., Setup],
) -> None:
    whole = SCENARIOS.get("split-digits")(ScenarioOptions())
    assert three_digits.n_tasks == whole.n_tasks == 5 > len(three_digits.tasks)
    setups = [
        setup_for(scenario, width=0.1, options=options, budget=budget, recipe={"epochs": 3})
        for scenario in (three_digits, whole)
    ]
    part, all_ = (STRATEGIES.get(name)(setup) for setup in setups)
    streams = [setup.scenario.benchmark().train_stream for setup in setups]
    for number, experiences in enumerate(zip(*streams, strict=False)):
        for learner, experience in zip((part, all_), experiences, strict=True):
            learner.train(experience)
        images = whole.tasks[number].test.images
        assert torch.equal(part.logits(number, images), all_.logits(number, images))
        assert part.floats() == all_.floats()
    assert part.growth_events or name != "firefly"


@pytest.mark.parametrize("name", ["individual", "ewc", "firefly"])
def test_answers_are_the_same_where_it_is_held_in_evaluation(
    name: str, digits: Scenario, trained: Callable[..., Any]
) -> None:
    learner = trained(name, digits, backbone="mlp-bn", recipe={"epochs": 1})
    nets = learner.nets.values() if name == "individual" else [learner.net]
    modes = [part.training for net in nets for part in net.modules()]
    images = digits.tasks[0].test.images
    alone = learner.logits(0, images)
    with learner.evaluating():
        assert not any(part.training for net in nets for part in net.modules())
        assert torch.equal(learner.logits(0, images), alone)
    assert [part.training for net in nets for part in net.modules()] == modes


def test_a_convolutional_net_learns_too(digits: Scenario, trained: Callable[..., Any]) -> None:
    learner = trained("replay", digits, backbone="resnet9", width=0.125)
    assert min(accuracy(learner, digits, task) for task in range(2)) >= 0.85


@pytest.fixture(scope="module")
def keeps(three_digits: Scenario, trained: Callable[..., Any]) -> Callable[..., float]:
    """What a strategy still knows of the first two of three tasks: the sum of both accuracies."""
    # Heads as fast as the trunk, at a high rate: fine-tuning without care for older tasks.
    recipe = {"epochs": 12, "learning_rate": 0.2, "head_rate": 1e6}

    def kept(name: str, options: dict[str, str]) -> float:
        learner = trained(
            name, three_digits, backbone="mlp-bn", width=0.1, recipe=recipe, options=options
        )
        return sum(accuracy(learner, three_digits, task) for task in (0, 1))

    return kept


@pytest.fixture(scope="module")
def naive_keeps(keeps: Callable[..., float]) -> float:
    return keeps("naive", {})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("replay", {}),
        ("ewc-online", {}),
        ("si", {}),
        ("mas", {}),
        ("lwf", {"alpha": "5"}),
        ("der", {}),
        ("er-ace", {}),
        ("agem", {}),
        ("gdumb", {}),
        ("gem", {}),
        ("icarl", {}),
        ("packnet", {}),
    ],
)
def test_naive_forgets_more(
    name: str, options: dict[str, str], naive_keeps: float, keeps: Callable[..., float]
) -> None:
    assert naive_keeps + 0.1 < keeps(name, options)


@pytest.mark.parametrize(
    "name",
    ["naive", "replay", "ewc", "individual", "si", "mas", "lwf", "der", "agem", "gdumb", "packnet"],
)
def test_a_seed_decides_every_bit(name: str, digits: Scenario, trained: Callable[..., Any]) -> None:
    images = digits.tasks[1].test.images
    quick: dict[str, Any] = {"recipe": {"epochs": 1, "mixup": 0.2, "cutmix": 0.5}}
    torch.manual_seed(11)
    first = trained(name, digits, seed=3, **quick).logits(1, images)
    torch.manual_seed(12)
    assert torch.equal(trained(name, digits, seed=3, **quick).logits(1, images), first)
    assert not torch.equal(trained(name, digits, seed=4, **quick).logits(1, images), first)


FAST = {"precision": "bfloat16", "channels_last": True}


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("ewc", {}),
        ("replay", {}),
        ("individual", {}),
        ("si", {}),
        ("mas", {}),
        ("lwf", {}),
        ("der", {}),
        ("er-ace", {}),
        ("gdumb", {}),
        ("packnet", {}),
        ("icarl", {}),
        ("individual", FAST),
        ("replay", FAST),
        ("packnet", FAST),
    ],
)
def test_saved_models_answer_bit_equally(
    name: str, recipe: dict[str, Any], digits: Scenario, trained: Callable[..., Any], tmp_path: Path
) -> None:
    learner = trained(
        name, digits, backbone="resnet9", width=0.0625, recipe={"epochs": 1, **recipe}
    )
    learner.save(tmp_path)
    learner.save(tmp_path)
    logits = load_logits(tmp_path)
    for task in range(2):
        images = digits.tasks[task].test.images
        assert torch.equal(logits(task, images), learner.logits(task, images))
    files = sorted(path.name for path in tmp_path.iterdir())
    kinds = [file.partition("-")[0] for file in files]
    assert kinds == [*([] if name in KEEP_NOTHING_ELSE else ["memory"]), "model", "model.json"]


def test_damaged_files_are_named(
    digits: Scenario, trained: Callable[..., Any], tmp_path: Path
) -> None:
    learner = trained("naive", digits, recipe={"epochs": 1})
    with pytest.raises(FileError, match=r"model\.json is missing"):
        load_logits(tmp_path)
    learner.save(tmp_path)
    structure = json.loads((tmp_path / "model.json").read_text())
    weights = tmp_path / structure["weights"]
    whole = weights.read_bytes()

    (tmp_path / "model.json").write_text(json.dumps({**structure, "schema": 99}))
    with pytest.raises(FileError, match=r"schema 99.*update"):
        load_logits(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({**structure, "kind": "forest"}))
    with pytest.raises(FileError, match="forest"):
        load_logits(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(structure)[:-20])
    with pytest.raises(FileError, match="damaged"):
        load_logits(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(structure))
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FileError, match="checksum"):
        load_logits(tmp_path)
    weights.unlink()
    with pytest.raises(FileError, match="missing"):
        load_logits(tmp_path)


def test_a_folder_that_cannot_be_written(
    digits: Scenario, trained: Callable[..., Any], tmp_path: Path
) -> None:
    learner = trained("naive", digits, recipe={"epochs": 1})
    (tmp_path / "run").write_text("a file")
    with pytest.raises(FileError, match="cannot write"):
        learner.save(tmp_path / "run")


def unequal(seed: int = 0) -> Scenario:
    """Tasks of two and four classes, told apart by the brightness of stripes."""
    generator = torch.Generator().manual_seed(seed)

    def images(n: int, classes: int, task: int) -> Images:
        labels = torch.arange(n) % classes
        pixels = torch.randint(0, 60, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
        for row in range(classes):
            pixels[labels == row, :, 2 * row] += 180
        return Images(pixels, labels, task)

    tasks = tuple(
        Task(
            task,
            f"stripes {classes}",
            tuple(f"row {row}" for row in range(classes)),
            images(48 * classes, classes, task),
            images(8, classes, task),
            images(40, classes, task),
        )
        for task, classes in enumerate((2, 4, 3))
    )
    return Scenario("stripes", tasks, (0.3,), (0.3,), (1, 8, 8), False)


@pytest.mark.parametrize("name", BASELINES)
def test_unequal_class_counts(name: str, trained: Callable[..., Any]) -> None:
    scenario = unequal()
    learner = trained(name, scenario, options={"ewc_lambda": "10"} if name == "ewc" else {})
    for task, classes in enumerate((2, 4, 3)):
        assert learner.logits(task, scenario.tasks[task].test.images).shape == (40, classes)
    assert accuracy(learner, scenario, 2) >= 0.9
    if name in ("joint", "individual", "replay"):
        assert accuracy(learner, scenario, 0) >= 0.9


def test_sizes_count_everything(digits: Scenario, trained: Callable[..., Any]) -> None:
    quick: dict[str, Any] = {"backbone": "mlp-bn", "recipe": {"epochs": 1}}
    # 64 inputs, two hidden layers of 64 with norm (weight, bias, mean, variance), heads of 2.
    trunk = 64 * 64 * 2 + 4 * 64 * 2
    head = 64 * 2 + 2
    naive = trained("naive", digits, **quick)
    assert naive.floats() == trunk + 2 * head
    assert naive.bytes() == 4 * naive.floats()
    assert naive.flops(0) == 2 * (64 * 64 * 2 + 64 * 2)
    assert naive.widths() == {"hidden.0": [64], "hidden.3": [64]}
    individual = trained("individual", digits, **quick)
    assert individual.floats() == 2 * (trunk + head)
    assert individual.widths()["hidden.0"] == [64, 64]
    ewc = trained("ewc", digits, **quick)
    held = 64 * 64 * 2 + 2 * 64 * 2
    # EWC keeps mean and variance of both norms for each of its two tasks.
    assert ewc.floats() == naive.floats() + 2 * (2 * 64 * 2)
    assert ewc.bytes() == 4 * ewc.floats() + 4 * (2 * held) + 8
    replay = trained("replay", digits, options={"mem_size": "50"}, **quick)
    assert replay.bytes() == 4 * replay.floats() + 50 * (64 + 16)
    # The springs of SI and MAS are as many; LwF keeps nothing.
    for name in ("ewc-online", "mas", "si"):
        sprung = trained(name, digits, **quick)
        assert sprung.bytes() == 4 * ewc.floats() + 4 * (2 * held) + 8
    assert trained("lwf", digits, **quick).bytes() == naive.bytes()
    # Remembered images with their label and task, and for DER++ with two logits.
    few: dict[str, Any] = {"options": {"mem_size": "50"}, **quick}
    for name in ("agem", "er-ace", "gdumb", "gem"):
        assert trained(name, digits, **few).bytes() == naive.bytes() + 50 * (64 + 16)
    assert trained("der", digits, **few).bytes() == naive.bytes() + 50 * (64 + 16 + 2 * 4)
    # iCaRL: a mean of 64 features for each class.
    means = 4 * (2 * 2 * 64)
    assert trained("icarl", digits, **few).bytes() == naive.bytes() + 50 * (64 + 16) + means
    # PackNet: norms of both tasks, and a bit for each weight and task.
    packed = trained("packnet", digits, **quick)
    assert packed.floats() == 2 * 64 * 64 + 2 * (2 * 4 * 64) + 2 * head
    assert packed.bytes() == 4 * packed.floats() + 2 * 64 * 64 * 2 // 8
    joint = trained("joint", digits, **quick)
    images = sum(len(task.train) for task in digits.tasks)
    assert joint.bytes() == 4 * joint.floats() + images * (64 + 8)


def test_each_task_is_evaluated_with_its_own_statistics(
    digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    setup = setup_for(digits, backbone="mlp-bn", options={"norm": "task"}, recipe={"epochs": 1})
    learner = STRATEGIES.get("naive")(setup)
    stream, images = digits.benchmark().train_stream, digits.tasks[0].test.images
    learner.train(stream[0])
    before = learner.logits(0, images)
    for values in learner.net.trunk.buffers():  # as another task's training would
        values.copy_(values * 3 + 1)
    assert torch.equal(learner.logits(0, images), before)
    learner.net.statistics.clear()
    assert not torch.equal(learner.logits(0, images), before)


@pytest.mark.parametrize("buffer", ["reservoir", "class"])
def test_other_memories(buffer: str, digits: Scenario, trained: Callable[..., Any]) -> None:
    learner = trained("replay", digits, options={"mem-size": "40", "buffer": buffer})
    assert accuracy(learner, digits, 0) >= 0.8


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("individual", {"mem_size": "3"}, "there are none"),
        ("naive", {"norm": "group"}, "shared, task"),
        ("replay", {"mem_siz": "3"}, "did you mean .mem_size.?"),
        ("replay", {"mem_size": "few"}, "a whole number"),
        ("replay", {"mem_size": "0"}, "at least 1"),
        ("replay", {"buffer": "heap"}, "balanced, class, reservoir"),
        ("ewc", {"ewc_lambda": "-1"}, "0 or more"),
        ("ewc", {"ewc_lambda": "nan"}, "must be a number"),
        ("ewc-online", {"ewc_lambda": "-1"}, "0 or more"),
        ("ewc-online", {"decay_factor": "1.5"}, r"in \[0, 1\]"),
        ("si", {"c": "inf"}, "must be a number"),
        ("si", {"xi": "0"}, "above 0"),
        ("mas", {"lambda_reg": "-1"}, "0 or more"),
        ("lwf", {"alpha": "nan"}, "must be a number"),
        ("lwf", {"temperature": "0"}, "above 0"),
        ("der", {"mem_size": "1"}, "at least 2"),
        ("der", {"beta": "-1"}, "beta is -1.0"),
        ("er-ace", {"mem_size": "0"}, "at least 2"),
        ("agem", {"sample_size": "1"}, "at least 2"),
        ("gem", {"memory_strength": "-1"}, "0 or more"),
        ("gem", {"mem_size": "3"}, "each of the 2 tasks"),
        ("gdumb", {"mem_siz": "4"}, "did you mean .mem_size.?"),
        ("packnet", {"prune_proportion": "half"}, "equal, or a number"),
        ("packnet", {"prune_proportion": "1"}, "equal, or a number"),
        ("packnet", {"post_prune_share": "1"}, r"in \[0, 1\)"),
    ],
)
def test_wrong_options(
    name: str,
    options: dict[str, str],
    message: str,
    digits: Scenario,
    setup_for: Callable[..., Setup],
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        STRATEGIES.get(name)(setup_for(digits, options=options))


@pytest.mark.parametrize("name", ["naive", "individual"])
def test_untrained_tasks_and_wrong_images(
    name: str, digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    learner = STRATEGIES.get(name)(setup_for(digits, recipe={"epochs": 1}))
    images = digits.tasks[0].test.images
    with pytest.raises(ConfigurationError, match="task 0 has not been trained"):
        learner.logits(0, images)
    learner.train(digits.benchmark().train_stream[0])
    with pytest.raises(DataError, match="the model expects"):
        learner.logits(0, images.repeat(1, 3, 1, 1))


def test_joint_waits_for_the_last_task(digits: Scenario, setup_for: Callable[..., Setup]) -> None:
    learner = STRATEGIES.get("joint")(setup_for(digits, recipe={"epochs": 1}))
    stream = digits.benchmark().train_stream
    learner.train(stream[0])
    assert learner.tasks_trained == 0
    learner.train(stream[1])
    assert learner.tasks_trained == 2
