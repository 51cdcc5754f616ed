"""Losses and gradients of DER++, ER-ACE and A-GEM against Avalanche's, and GDumb's memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from avalanche.training import ACECriterion
from avalanche.training.plugins import AGEMPlugin
from torch import Tensor, nn
from torch.nn import functional

from firefly_cl.baselines.agem import ProjectionPlugin
from firefly_cl.baselines.der import DarkPlugin
from firefly_cl.baselines.er_ace import AsymmetricPlugin
from firefly_cl.baselines.exemplars import Exemplars
from firefly_cl.baselines.gem import ConstraintPlugin, GemOptions, project
from firefly_cl.baselines.multihead import MultiHead, blueprint_of
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.criterion import TrainingCriterion
from firefly_cl.continual.learner import Setup
from firefly_cl.scenarios import Images, Scenario, normalise


def images(n: int, classes: int, task: int) -> Images:
    generator = torch.Generator().manual_seed(task)
    pixels = torch.randint(0, 255, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(n) % classes, task)


class Step:
    """A training step of a net with heads of 2, 4 and 3 classes, learning the last."""

    def __init__(self, setup: Setup, exemplars: Exemplars) -> None:
        model = MultiHead(blueprint_of(setup).build(0), 0)
        for task, classes in enumerate((2, 4, 3)):
            model.add_head(task, classes)
        for task, classes in enumerate((2, 4)):
            exemplars.add(images(10, classes, task), torch.randn(10, classes))
        held = exemplars.images
        assert held is not None
        new = images(8, 3, 2)
        self.model = model
        self.y = new.labels
        self.x = normalise(new.images, setup.scenario.mean, setup.scenario.std)
        self.chosen = torch.arange(0, 20, 3)
        self.memory_y = held.labels[self.chosen]
        self.memory_tasks = held.task_of_each()[self.chosen]
        self.memory_x = normalise(held.images[self.chosen], setup.scenario.mean, setup.scenario.std)
        criterion = TrainingCriterion(nn.CrossEntropyLoss(), 0.0)
        criterion.active = True
        self.strategy: Any = SimpleNamespace(
            model=model,
            device=torch.device("cpu"),
            _criterion=criterion,
            mb_y=self.y,
            mb_output=model(self.x, 2),
            loss=torch.zeros(()),
        )

    def recall_for(self, plugin: Any) -> None:
        plugin._batches = iter([(self.memory_x, self.chosen)])

    def forward_with(self, plugin: Any) -> None:
        """Call the model as a training step does, with what the plugin recalls."""
        plugin.join(self.model)
        plugin.before_forward(self.strategy)
        self.strategy.mb_output = self.model(self.x, 2)

    def memory_logits(self) -> Tensor:
        """(7, 4); minus infinity where the first task has no class."""
        logits: Tensor = self.model(self.memory_x, self.memory_tasks)
        return logits


@pytest.fixture
def setup(digits: Scenario, setup_for: Callable[..., Setup]) -> Setup:
    torch.manual_seed(0)
    return setup_for(digits)


def test_der_by_hand(setup: Setup) -> None:
    exemplars = Exemplars(20)
    plugin = DarkPlugin(setup, exemplars, alpha=0.3, beta=0.7)
    step = Step(setup, exemplars)
    step.recall_for(plugin)
    step.forward_with(plugin)
    plugin.before_backward(step.strategy)
    assert exemplars.logits is not None
    squares, losses = [], []
    for row, task, label, number in zip(
        step.memory_logits(), step.memory_tasks, step.memory_y, step.chosen, strict=True
    ):
        answers = row[: (2, 4)[task]]
        squares += list((answers - exemplars.logits[number, : len(answers)]).square())
        losses.append(functional.cross_entropy(answers[None], label[None]))
    assert len(squares) == 2 * 4 + 4 * 3  # images 0, 3, 6, 9 are of the first task
    expected = 0.3 * sum(squares) / len(squares) + 0.7 * sum(losses) / len(losses)
    torch.testing.assert_close(step.strategy.loss, expected)
    gradients = [
        torch.autograd.grad(loss, list(step.model.net.trunk.parameters()), retain_graph=True)
        for loss in (step.strategy.loss, expected)
    ]
    torch.testing.assert_close(*gradients)


def test_der_recalls_in_one_batch_with_the_new_images(
    digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    """Batch norm sees both, and the step's own output is that of the new images."""
    setup, exemplars = setup_for(digits, backbone="resnet9", width=0.1), Exemplars(20)
    plugin = DarkPlugin(setup, exemplars, alpha=0.3, beta=0.7)
    step = Step(setup, exemplars)
    both = torch.cat([step.x, step.memory_x])
    tasks = torch.cat([torch.full((len(step.x),), 2), step.memory_tasks])
    joined = step.model(both, tasks)
    assert not torch.allclose(joined[: len(step.x), :3], step.strategy.mb_output)
    step.recall_for(plugin)
    step.forward_with(plugin)
    assert step.strategy._criterion(step.strategy.mb_output, step.y).isfinite()
    torch.testing.assert_close(step.strategy.mb_output, joined[: len(step.x)])
    recalled = plugin.recall(step.strategy)
    assert recalled is not None
    torch.testing.assert_close(recalled[0], joined[len(step.x) :])
    assert torch.equal(recalled[1], step.memory_y) and torch.equal(recalled[2], step.chosen)
    assert plugin.recall(step.strategy) is None  # once for each call
    assert len(step.model(step.x, 2)) == len(step.x)
    step.recall_for(plugin)
    plugin.before_forward(step.strategy)
    assert len(step.model.eval()(step.x, 2)) == len(step.x)  # where training was broken off
    plugin.part()
    assert len(step.model.train()(step.x, 2)) == len(step.x)


def test_stored_logits_are_the_answers_where_the_task_ends(
    digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    recipe = {"epochs": 1, "precision": "bfloat16", "mixup": 0.4}
    changes: dict[str, Any] = {"backbone": "resnet9", "width": 0.1, "options": {"mem_size": "50"}}
    learner: Any = STRATEGIES.get("der")(setup_for(digits, recipe=recipe, **changes))
    stream = digits.benchmark().train_stream
    for task in (0, 1):
        learner.train(stream[task])
        held, logits = learner.memory.images, learner.memory.logits
        rows = held.tasks == task
        assert logits.dtype == torch.float32
        torch.testing.assert_close(
            logits[rows], learner.logits(task, held.images[rows]), rtol=1e-3, atol=1e-4
        )
    assert 10 < int(rows.sum()) < 40


def test_er_ace_equals_avalanches(setup: Setup) -> None:
    exemplars = Exemplars(20, "class")
    plugin = AsymmetricPlugin(setup, exemplars)
    step = Step(setup, exemplars)
    step.recall_for(plugin)
    strategy = step.strategy
    strategy.mb_y = step.y % 2  # the third class is not in the batch
    plain = strategy.mb_output
    step.forward_with(plugin)
    plugin.after_forward(strategy)
    strategy.loss = strategy._criterion(strategy.mb_output, strategy.mb_y)
    plugin.before_backward(strategy)
    memory = step.memory_logits()
    expected = ACECriterion()(plain, strategy.mb_y, memory, step.memory_y)
    torch.testing.assert_close(strategy.loss, expected)
    head = step.model.net.heads["2"].bias
    (gradient,) = torch.autograd.grad(strategy.loss, head)
    assert gradient[2] == 0 and (gradient[:2] != 0).all()


@pytest.mark.parametrize("against", [False, True])
def test_agem_equals_avalanches(setup: Setup, against: bool) -> None:
    exemplars = Exemplars(20, "task")
    plugin = ProjectionPlugin(setup, exemplars)
    step = Step(setup, exemplars)
    step.recall_for(plugin)
    theirs = AGEMPlugin(10, 20)
    theirs.buffers = [None]  # type: ignore[list-item]
    weights = list(step.model.parameters())
    reference = torch.autograd.grad(
        functional.cross_entropy(step.memory_logits(), step.memory_y), weights, allow_unused=True
    )
    # A step along or against the memory's gradient, and something else.
    other = functional.cross_entropy(step.strategy.mb_output, step.y)
    other.backward()
    # Avalanche counts the gradients of older heads too, which the step does not move.
    theirs.reference_gradients = torch.cat(
        [
            (torch.zeros_like(w) if r is None or w.grad is None else r).flatten()
            for w, r in zip(weights, reference, strict=True)
        ]
    )
    found = []
    for w, r in zip(weights, reference, strict=True):
        if w.grad is not None and r is not None:
            w.grad += -r if against else r
    before = [None if w.grad is None else w.grad.clone() for w in weights]
    for projection in (plugin.after_backward, theirs.after_backward):
        for w, gradient in zip(weights, before, strict=True):
            w.grad = None if gradient is None else gradient.clone()
        projection(step.strategy)
        found.append([w.grad for w in weights])
    for ours, expected, first in zip(*found, before, strict=True):
        assert (ours is None) == (expected is None)
        if ours is not None and expected is not None and first is not None:
            torch.testing.assert_close(ours, expected)
    moved = sum(
        float((ours - first).abs().sum())
        for ours, first in zip(found[0], before, strict=True)
        if ours is not None and first is not None
    )
    assert (moved > 0) == against


@pytest.mark.parametrize("seed", range(6))
def test_gem_finds_the_nearest_gradient_that_hurts_no_task(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    references = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    gradient = torch.randn(5, generator=generator, dtype=torch.float64) - references.sum(0)
    feasible = []
    for size in range(4):  # the nearest lies where some of the constraints hold with equality
        for active in itertools.combinations(range(3), size):
            rows = references[list(active)]
            moved = gradient - rows.T @ torch.linalg.pinv(rows.T) @ gradient
            if (references @ moved > -1e-9).all():
                feasible.append(moved)
    nearest = min(feasible, key=lambda moved: float((moved - gradient).norm()))
    torch.testing.assert_close(project(gradient, references), nearest, rtol=1e-4, atol=1e-4)
    assert (references @ gradient < 0).any()


def test_gems_margin_and_harmless_steps() -> None:
    references = torch.tensor([[2.0, 0.0]])
    harmless = torch.tensor([1.0, 5.0])
    assert torch.equal(project(harmless, references, 0.5), harmless)
    # v = -p / P = 0.25 is below the margin; v = 1.5 is above it.
    for before, after in (([-0.5, 1.0], [0.5, 1.0]), ([-3.0, 1.0], [0.0, 1.0])):
        moved = project(torch.tensor(before), references, 0.5)
        torch.testing.assert_close(moved, torch.tensor(after), rtol=1e-4, atol=1e-4)


def test_gems_step_hurts_no_older_task(setup: Setup) -> None:
    exemplars = Exemplars(20, "task")
    plugin = ConstraintPlugin(setup, exemplars, GemOptions(memory_strength=0.0))
    step = Step(setup, exemplars)
    held = exemplars.images
    assert held is not None
    x = normalise(held.images, setup.scenario.mean, setup.scenario.std)
    rows = [(held.task_of_each() == task).nonzero()[:, 0] for task in (0, 1)]
    trunk = list(step.model.net.trunk.parameters())
    slopes = [
        torch.autograd.grad(
            functional.cross_entropy(step.model(x[rows[task]], task), held.labels[rows[task]]),
            trunk,
        )
        for task in (0, 1)
    ]

    def products() -> list[float]:
        pairs = [zip(of_task, trunk, strict=True) for of_task in slopes]
        return [
            sum(float((s * w.grad).sum()) for s, w in pair if w.grad is not None) for pair in pairs
        ]

    functional.cross_entropy(step.strategy.mb_output, step.y).backward()
    for w, *both in zip(trunk, *slopes, strict=True):
        assert w.grad is not None
        w.grad -= 3 * both[0] + 2 * both[1]  # uphill for both older tasks
    before = products()
    assert max(before) < 0
    plugin._by_task = [iter([(x[of], of)]) for of in rows]
    plugin.before_training_iteration(step.strategy)
    plugin.after_backward(step.strategy)
    assert min(products()) > 1e-4 * min(before)
    assert all(w.grad is None for task in "01" for w in step.model.net.heads[task].parameters())


def test_gem_asks_older_tasks_before_it_sees_new_images(
    digits: Scenario, setup_for: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    forward = MultiHead.forward

    def recorded(model: MultiHead, x: Tensor, tasks: Any) -> Any:
        asked.extend(torch.unique(tasks).tolist())
        return forward(model, x, tasks)

    learner: Any = STRATEGIES.get("gem")(setup_for(digits, recipe={"epochs": 1}))
    stream = digits.benchmark().train_stream
    learner.train(stream[0])
    monkeypatch.setattr(MultiHead, "forward", recorded)
    learner.train(stream[1])
    # Batch norm's statistics follow the batches in this order.
    assert asked and asked == [0, 1] * (len(asked) // 2)


def test_gdumb_learns_from_its_memory_alone(
    digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    options = {"mem_size": "40"}
    learner: Any = STRATEGIES.get("gdumb")(setup_for(digits, recipe={"epochs": 2}, options=options))
    stream = digits.benchmark().train_stream
    learner.train(stream[0])
    begun: list[dict[str, Tensor]] = []
    seen: list[Tensor] = []
    plugin = learner._plugins[0]

    def before_training_exp(strategy: Any, **kwargs: object) -> None:
        begun.append({k: v.clone() for k, v in strategy.model.net.trunk.state_dict().items()})

    def before_training_iteration(strategy: Any, **kwargs: object) -> None:
        seen.append(torch.stack([strategy.mbatch[2], strategy.mbatch[1]], 1))

    plugin.before_training_exp = before_training_exp
    plugin.before_training_iteration = before_training_iteration
    learner.train(stream[1])
    fresh = blueprint_of(learner.setup).build(0).trunk.state_dict()
    assert all(torch.equal(begun[0][name], values) for name, values in fresh.items())
    pairs, counts = torch.cat(seen).unique(dim=0, return_counts=True)
    assert pairs.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert counts.tolist() == [2 * 10] * 4
    assert list(learner.net.heads) == ["0", "1"]
