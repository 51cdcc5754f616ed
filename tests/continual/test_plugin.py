"""FireflyPlugin in templates, with optimizers and loaders, that others have made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from avalanche.training.templates import SupervisedTemplate
from growing_streams import PLAN, RECIPE, accuracy, answers, backbone, drawn, growing, stream_of
from torch import Tensor, nn

from firefly_cl.continual.growing import FireflyPlugin
from firefly_cl.continual.loading import Pixels
from firefly_cl.continual.model import FireflyModel
from firefly_cl.continual.plan import Plan
from firefly_cl.continual.training import TrainingPlugin
from firefly_cl.errors import ConfigurationError
from firefly_cl.gates.pruning import GatePruning
from firefly_cl.gates.selection import GateSelection
from firefly_cl.growth.budget import Budget
from firefly_cl.growth.criterion import Growth
from firefly_cl.network import FireflyNet, floats

TASKS = [((0, 1), 32), ((2, 3), 32), ((4, 5), 32)]


def wrapped(name: str = "concat") -> FireflyModel:
    return FireflyModel.wrap(backbone(name), torch.zeros(2, 1, 8, 8), PLAN)


def one_group(net: FireflyNet) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=0.01)


def several_groups(net: FireflyNet) -> torch.optim.Optimizer:
    first, *others = net.parameters()
    groups = [{"params": [first], "lr": 0.05}, {"params": others, "lr": 0.01}]
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.01)


def adamw(net: FireflyNet) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1, amsgrad=True)


class Watch(SupervisedPlugin):
    """Checks the optimizer at every step, and keeps what was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.sizes: list[int] = []
        self.states = 0

    def before_training_iteration(self, strategy: Any, **kwargs: object) -> None:
        self.seen.append(strategy.mb_x.clone())

    def before_update(self, strategy: Any, **kwargs: object) -> None:
        held = [p for group in strategy.optimizer.param_groups for p in group["params"]]
        net = strategy.model.net
        assert len(held) == len({id(p) for p in held})
        assert {id(p) for p in held} == {id(p) for p in net.trainable()}
        assert all(p.requires_grad for p in held)
        frozen = {id(p) for t in range(net.current) for _, p in net.task_parameters(t)}
        assert not frozen & {id(p) for p in held}
        own = {id(p) for p in held}
        assert all(id(p) in own for p in strategy.optimizer.state)
        for p, state in strategy.optimizer.state.items():
            assert all(v.shape == p.shape for k, v in state.items() if k != "step")
            self.states += len(state)
        self.sizes.append(sum(p.numel() for p in held))


@pytest.mark.parametrize("template", [SupervisedTemplate, Naive])
@pytest.mark.parametrize("optimizer", [one_group, several_groups, adamw])
def test_in_anybodys_template(template: Any, optimizer: Callable[[FireflyNet], Any]) -> None:
    torch.manual_seed(0)  # Avalanche's loaders shuffle by it
    model, watch = wrapped(), Watch()
    strategy = template(
        model=model,
        optimizer=optimizer(model.net),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=16,
        train_epochs=6,
        plugins=[watch, FireflyPlugin(PLAN)],
        evaluator=EvaluationPlugin(),
    )
    benchmark = stream_of(TASKS)
    images, _ = drawn(range(6), 3, seed=5)
    ended = []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        ended.append(answers(model, experience.task_label, images))
        strategy.eval(benchmark.test_stream)
    for task, experience in enumerate(benchmark.test_stream):
        assert accuracy(model, experience) >= 0.9
        assert torch.equal(answers(model, task, images), ended[task])
    assert len(set(watch.sizes)) >= 4  # units were added inside tasks, too
    assert watch.states > 0


def test_optimizer_follows_growth_under_a_recipe() -> None:
    watch = Watch()
    strategy = growing("resnet9", plugins=[watch])
    strategy.train(stream_of(TASKS).train_stream)
    assert len(strategy.firefly.events) == 3 and watch.states > 0


def test_the_first_task_grows_by_the_epochs_of_the_recipe() -> None:
    model = wrapped("mlp")
    strategy = Naive(
        model=model,
        optimizer=one_group(model.net),
        plugins=[FireflyPlugin(PLAN), TrainingPlugin(RECIPE)],
        evaluator=EvaluationPlugin(),
    )
    strategy.train(stream_of(TASKS).train_stream)
    firefly = next(plugin for plugin in strategy.plugins if isinstance(plugin, FireflyPlugin))
    assert [(event["task"], event["epoch"]) for event in firefly.events] == [(0, 1), (1, 1), (2, 1)]


def test_needs_a_growing_model() -> None:
    model = backbone()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        plugins=[FireflyPlugin(PLAN)],
        evaluator=EvaluationPlugin(),
    )
    with pytest.raises(ConfigurationError, match=r"wrap the model with FireflyModel\.wrap"):
        strategy.train(stream_of(TASKS).train_stream[0])


# --- growth inside a task ---------------------------------------------------------------------


def test_growth_is_told() -> None:
    plan = dataclasses.replace(PLAN, grow_at=(0.25, 0.5), patience=-10.0)
    strategy = growing("resnet9", plan=plan, recipe=dataclasses.replace(RECIPE, epochs=4))
    before = {}
    for experience in stream_of(TASKS).train_stream:
        strategy.train(experience)
        before[strategy.net.current] = floats(strategy.net)
    events = strategy.firefly.events
    assert [(event["task"], event["epoch"]) for event in events] == [
        (task, epoch) for task in range(3) for epoch in (1, 2)
    ]
    for event in events:
        kinds, spaces = event["kinds"], event["spaces"]
        assert isinstance(kinds, dict) and isinstance(spaces, dict)
        assert sum(kinds.values()) == sum(spaces.values()) > 0
        assert set(kinds) <= {"split", "unlock", "new"}
        assert isinstance(event["predicted_decrease"], float) and event["predicted_decrease"] > 0
        assert isinstance(event["validation_loss"], float)
        assert isinstance(event["obtained_decrease"], float)
        assert 0 <= event["validation_accuracy"] <= 1
        assert event["parameters_before"] < event["parameters"]
        assert event["flops_before"] < event["flops"]
    assert [events[i]["parameters"] for i in (1, 3, 5)] == list(before.values())
    grown = [sum(widths) for widths in zip(*strategy.net.widths().values(), strict=True)]
    told = [sum(sum(e["spaces"].values()) for e in events if e["task"] == t) for t in range(3)]
    assert grown[0] == told[0] + sum(
        space.width(0) for space in growing("resnet9").net.spaces.values() if not space.fixed
    )


def test_never_grows_without_a_schedule() -> None:
    strategy = growing("resnet9", plan=dataclasses.replace(PLAN, grow_at=()))
    seeds = []
    for experience in stream_of(TASKS).train_stream:
        seeds.append(None if not seeds else PLAN.seed_widths(strategy.net))
        strategy.train(experience)
    assert strategy.firefly.events == []
    for name, widths in strategy.net.widths().items():
        assert widths == [6, *(seed[name] for seed in seeds[1:] if seed)]


class Recorder:
    """A criterion that grows nothing and keeps what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[Tensor]] = []
        self.calls = 0

    def grow(self, net: FireflyNet, batches: Any, loss: Any, budget: Budget, *rest: Any) -> Growth:
        self.calls += 1
        self.batches += [batch[0].clone() for batch in batches]
        assert all(float(loss(lambda x: net(x), batch).detach()) >= 0 for batch in batches)
        return Growth()


def pictures(batches: Any) -> set[bytes]:
    return {image.numpy().tobytes() for batch in batches for image in batch}


@pytest.mark.parametrize("recipe", [RECIPE, None])
@pytest.mark.parametrize("valid", [True, False])
def test_held_out_images_are_never_learnt(recipe: Any, valid: bool) -> None:
    plan = dataclasses.replace(PLAN, validation=0.25, patience=-10.0)
    watch, recorder = Watch(), Recorder()
    strategy = growing(plan=plan, recipe=recipe, plugins=[watch], train_epochs=2, train_mb_size=16)
    strategy.firefly.criterion = recorder
    judged: list[Tensor] = []
    held_out = strategy.firefly.held_out
    plain = held_out.measure

    def measure(net: FireflyNet) -> tuple[float | None, float | None]:
        judged.extend(batch[0].clone() for batch in held_out.batches)
        return plain(net)

    held_out.measure = measure  # type: ignore[method-assign]
    benchmark = stream_of(TASKS, valid=valid)
    for experience in benchmark.train_stream:
        watch.seen.clear()
        judged.clear()
        recorder.batches.clear()
        strategy.train(experience)
        learnt, grown, held = pictures(watch.seen), pictures(recorder.batches), pictures(judged)
        assert recorder.calls and held and grown <= learnt and not learnt & held
        every = pictures([torch.stack([item[0] for item in experience.dataset])])
        if valid:
            assert learnt == every
            number = experience.current_experience
            stream = benchmark.valid_stream[number].dataset
            assert held == pictures([torch.stack([item[0] for item in stream])])
        else:
            assert learnt | held == every and len(held) == 16
        test = benchmark.test_stream[experience.current_experience].dataset
        assert not pictures([torch.stack([i[0] for i in test])]) & (learnt | held | grown)


class Bytes:
    """A loader of its own kind: two batches of uint8 images."""

    def __init__(self, task: int) -> None:
        self.images = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8)
        self.labels, self.task = torch.arange(32) % 2, task

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[list[Tensor]]:
        for x, y in zip(self.images.chunk(2), self.labels.chunk(2), strict=True):
            yield [x, y, torch.full_like(y, self.task)]


class OwnLoader(SupervisedPlugin):
    """Puts that loader in the place of the strategy's, and keeps what the model is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor] = []

    def before_training_exp(self, strategy: Any, **kwargs: object) -> None:
        strategy.dataloader = Bytes(strategy.experience.task_label)

    def before_backward(self, strategy: Any, **kwargs: object) -> None:
        self.given.append(strategy.mb_x)


@pytest.mark.parametrize("name", ["mlp", "resnet9"])
def test_bytes_of_other_loaders_are_normalised_in_every_phase(name: str) -> None:
    gates = {"select_at": (0.5,), "prune_at": (0.5,), "gates": GatePruning(epochs=1)}
    plan = dataclasses.replace(PLAN, validation=0.0, selection=GateSelection(epochs=1), **gates)
    loader, seen = OwnLoader(), []
    strategy = growing(name, plan=plan, plugins=[loader], pixels=Pixels((0.5,), (0.25,)))
    criterion = strategy.firefly.criterion

    class Seeing(Recorder):
        def grow(self, net: FireflyNet, batches: Any, loss: Any, *rest: Any) -> Growth:
            for batch in batches:
                loss(lambda x: seen.append(x) or net(x), batch)
                assert batch[0].dtype == torch.uint8
            return criterion.grow(net, batches, loss, *rest)

    strategy.firefly.criterion = Seeing()
    strategy.train(stream_of(TASKS[:2]).train_stream)
    assert pictures(seen) == pictures(loader.given) and seen[0].min() < 0
    kinds = {kind for event in strategy.firefly.events for kind in event["kinds"]}
    assert {"deselect", "prune"} < kinds


def test_holding_out_depends_on_the_seed_alone() -> None:
    found = []
    for seed in (0, 0, 1):
        watch = Watch()
        strategy = growing(plugins=[watch], seed=seed)
        strategy.train(stream_of(TASKS).train_stream[0])
        found.append(pictures(watch.seen))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("losses", "grown"),
    [
        ((1.0, 0.9, 0.8), 3),
        ((1.0, 0.999, 0.5), 1),  # a fall of less than patience ends it for the task
        ((1.0, 1.2, 0.5), 1),
        ((1.0, 0.9, 0.95), 2),
    ],
)
def test_stops_by_the_validation_loss(losses: tuple[float, ...], grown: int) -> None:
    plan = dataclasses.replace(PLAN, grow_at=(0.25, 0.5, 0.75), patience=0.01)
    strategy = growing(plan=plan, recipe=dataclasses.replace(RECIPE, epochs=4))
    recorder = Recorder()
    strategy.firefly.criterion = recorder
    told: Iterator[float] = iter(())
    strategy.firefly.held_out.measure = lambda net: (next(told), 0.5)  # type: ignore[method-assign]
    for experience in stream_of(TASKS[:2]).train_stream:
        told, recorder.calls = iter(losses), 0
        strategy.train(experience)
        assert recorder.calls == grown  # each task anew


def test_validation_is_of_the_newest_task() -> None:
    strategy = growing("resnet9")
    benchmark = stream_of(TASKS[:1], valid=True)
    found: list[tuple[float | None, float | None]] = []

    class Judge(SupervisedPlugin):
        def after_training_epoch(self, template: Any, **kwargs: object) -> None:
            found.append(strategy.firefly.held_out.measure(template.model.net))
            assert template.model.net.training

    strategy.plugins.append(Judge())
    strategy.train(benchmark.train_stream[0])
    held = benchmark.valid_stream[0].dataset
    images = torch.stack([item[0] for item in held])
    labels = torch.tensor([int(item[1]) for item in held])
    logits = answers(strategy.model, 0, images)
    loss, accuracy = found[-1]
    assert loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert accuracy == int((logits.argmax(1) == labels).sum()) / len(labels)


@pytest.mark.parametrize("cost", ["units", "parameters"])
def test_a_step_makes_up_for_what_the_one_before_left(cost: str) -> None:
    amounts = []

    class Miser(Recorder):
        def grow(
            self, net: FireflyNet, batches: Any, loss: Any, budget: Budget, *rest: Any
        ) -> Growth:
            amounts.append(budget.amount)
            return Growth()

    plan = dataclasses.replace(PLAN, grow_at=(0.25, 0.5), patience=-10.0, growth=0.5, cost=cost)
    strategy = growing("mobilenetv1", plan=plan, recipe=dataclasses.replace(RECIPE, epochs=4))
    strategy.firefly.criterion = Miser()
    strategy.train(stream_of(TASKS).train_stream[0])
    own = strategy.net.units() if cost == "units" else floats(strategy.net)
    assert amounts == [int(1.5 * own) - own, int(2.25 * own) - own]


def test_the_schedule_may_begin_anew_with_each_growth_step() -> None:
    rates: list[list[float]] = []

    class Rates(SupervisedPlugin):
        def before_training_epoch(self, template: Any, **kwargs: object) -> None:
            rates.append([])

        def before_backward(self, template: Any, **kwargs: object) -> None:
            rates[-1].append(template.optimizer.param_groups[0]["lr"])

    plan = dataclasses.replace(PLAN, grow_at=(0.25, 0.5), restart=True)
    recipe = dataclasses.replace(RECIPE, epochs=4, schedule="cosine")
    strategy = growing(plan=plan, recipe=recipe, plugins=[Rates()])
    strategy.train(stream_of(TASKS).train_stream[0])
    one, two, *last = rates
    assert one == two  # a whole schedule in one epoch
    assert one[0] == last[0][0] == recipe.learning_rate
    assert one[-1] < 0.01 * one[0] and last[1][-1] < 0.01 * one[0]
    assert last[0][-1] > 0.3 * one[0]  # the last round has two epochs


def test_nothing_held_out_grows_on_schedule() -> None:
    plan = Plan(seed=0.5, grow_at=(0.25, 0.5), validation=0.0, settings=PLAN.settings)
    strategy = growing(plan=plan, recipe=dataclasses.replace(RECIPE, epochs=4))
    strategy.train(stream_of(TASKS).train_stream[0])
    assert [event["validation_loss"] for event in strategy.firefly.events] == [None, None]
