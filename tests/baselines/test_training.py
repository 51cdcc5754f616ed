"""The training plugin: loaders, mixup, smoothing, divergence, news, evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks.utils import DataAttribute
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin, LwFPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from quick_training import QUICK, accuracy
from torch import Tensor, nn

from firefly_cl.baselines.multihead import MultiHead, blueprint_of, make_strategy
from firefly_cl.continual import STRATEGIES
from firefly_cl.continual.criterion import TrainingCriterion
from firefly_cl.continual.learner import Progress, Setup
from firefly_cl.continual.loading import Pixels, RehearsalBatches
from firefly_cl.continual.mixing import Mixture, cutmix, mixup
from firefly_cl.continual.training import TrainingPlugin, make_optimizer
from firefly_cl.errors import DataError, DivergenceError
from firefly_cl.scenarios import Batches, Images, Scenario


def test_smoothing_agrees_with_torch_and_skips_absent_classes() -> None:
    logits, labels = torch.randn(7, 4), torch.randint(0, 3, (7,))
    criterion = TrainingCriterion(nn.CrossEntropyLoss(), 0.1)
    criterion.active = True
    narrow = nn.functional.cross_entropy(logits[:, :3], labels, label_smoothing=0.1)
    logits[:, 3] = -torch.inf
    logits.requires_grad_()
    loss = criterion(logits, labels)
    torch.testing.assert_close(loss, narrow)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    assert (gradient[:, 3] == 0).all()


def test_criterion_is_plain_outside_training_steps() -> None:
    logits, labels = torch.randn(5, 3), torch.randint(0, 3, (5,))
    criterion = TrainingCriterion(nn.CrossEntropyLoss(), 0.1)
    assert torch.equal(criterion(logits, labels), nn.functional.cross_entropy(logits, labels))


def test_mixed_loss_is_the_mean_of_both_labels() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    criterion = TrainingCriterion(nn.CrossEntropyLoss(), 0.0)
    criterion.active, criterion.mixture = True, Mixture(labels.flip(0), 0.25)
    ce = nn.functional.cross_entropy
    expected = 0.25 * ce(logits, labels) + 0.75 * ce(logits, labels.flip(0))
    torch.testing.assert_close(criterion(logits, labels), expected)


@pytest.mark.parametrize("mix", [partial(mixup, alpha=1.0), cutmix], ids=["mixup", "cutmix"])
def test_mixing_stays_within_a_task(mix: Callable[..., tuple[Tensor, Mixture]]) -> None:
    tasks = torch.tensor([0, 1, 0, 1, 1, 0, 0])
    x = tasks.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    y = torch.arange(7)
    seen = set()
    for seed in range(20):
        mixed, mixture = mix(x, y, tasks, random=np.random.default_rng(seed))
        torch.testing.assert_close(mixed, x)  # equal images mixed are the same image
        assert mixture.labels.sort().values.equal(y)
        assert tasks[mixture.labels].equal(tasks)
        seen.add(tuple(mixture.labels.tolist()))
    assert len(seen) > 10


def test_cutmix_pastes_one_rectangle_and_counts_its_pixels() -> None:
    x = torch.arange(6.0).view(-1, 1, 1, 1).expand(-1, 3, 8, 12)
    y, tasks = torch.arange(6), torch.zeros(6, dtype=torch.int64)
    shares = []
    for seed in range(200):
        mixed, mixture = cutmix(x, y, tasks, np.random.default_rng(seed))
        pasted = mixed[:, 0] == mixture.labels.view(-1, 1, 1)
        own = mixed[:, 0] == y.view(-1, 1, 1)
        assert bool((pasted | own).all())
        moved = [i for i in range(6) if mixture.labels[i] != i]
        for i in moved:
            assert float(own[i].float().mean()) == pytest.approx(mixture.share)
            rows, columns = pasted[i].any(1).sum(), pasted[i].any(0).sum()
            assert int(pasted[i].sum()) == int(rows * columns)
        shares.append(mixture.share)
    assert min(shares) < 0.2 and max(shares) > 0.95


def test_rehearsal_joins_each_batch_with_memory() -> None:
    def batches(n: int, size: int, task: int) -> Batches:
        images = Images(torch.zeros(n, 1, 8, 8, dtype=torch.uint8), torch.arange(n) % 2, task)
        return Batches(
            images,
            size,
            mean=(0.5,),
            std=(0.5,),
            augmentation=None,
            shuffle=True,
            generator=torch.Generator().manual_seed(0),
            device="cpu",
        )

    joined = list(RehearsalBatches(batches(20, 8, 5), [batches(6, 4, 2)]))
    assert [batch[2].tolist() for batch in joined] == [
        [5] * 6 + [2] * 3,
        [5] * 7 + [2] * 3,
        [5] * 7 + [2] * 3,
    ]


def test_schedule_reaches_every_step_and_news_every_epoch(
    digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    news: list[Progress] = []
    rates: list[float] = []
    setup = setup_for(digits, progress=news.append)
    learner = STRATEGIES.get("naive")(setup)
    step = learner.strategy.optimizer.step

    def spy(*args: Any, **kwargs: Any) -> Any:
        rates.append(learner.strategy.optimizer.param_groups[0]["lr"])
        return step(*args, **kwargs)

    learner.strategy.optimizer.step = spy
    learner.train(digits.benchmark().train_stream[0])
    steps = len(rates)
    assert rates == [setup.recipe.rate(i, steps) for i in range(steps)]
    assert [(line.task, line.tasks, line.epoch) for line in news] == [(0, 2, i) for i in range(7)]
    assert news[0].loss is None
    assert news[-1].loss < news[1].loss
    assert news[-1].accuracy > 0.9


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_autocast_is_only_in_training(
    digits: Scenario, setup_for: Callable[..., Setup], precision: str
) -> None:
    setup = setup_for(digits, recipe={"precision": precision, "epochs": 1})
    learner = STRATEGIES.get("naive")(setup)
    kinds: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    learner.net.trunk.register_forward_hook(
        lambda module, args, output: kinds[module.training].add(output.dtype)
    )
    stream = digits.benchmark().train_stream
    learner.train(stream[0])
    learner.strategy.eval(stream[:1])
    learner.logits(0, digits.tasks[0].test.images)
    assert kinds == {True: {getattr(torch, precision)}, False: {torch.float32}}
    assert "forward" not in vars(learner.strategy)


def test_nan_loss_ends_training_before_the_weights_see_it(
    digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    learner = STRATEGIES.get("naive")(setup_for(digits, recipe={"learning_rate": 1e12}))
    with pytest.raises(
        DivergenceError, match=r"task 0, epoch .* lower the learning rate"
    ) as caught:
        learner.train(digits.benchmark().train_stream[0])
    assert "\n" not in str(caught.value)
    assert not torch.is_autocast_enabled("cpu")


def with_train(scenario: Scenario, task: int, train: Images) -> Scenario:
    tasks = list(scenario.tasks)
    tasks[task] = dataclasses.replace(tasks[task], train=train)
    return dataclasses.replace(scenario, tasks=tuple(tasks))


def test_nan_pixels_are_refused(digits: Scenario, setup_for: Callable[..., Setup]) -> None:
    train = digits.tasks[0].train
    pixels = train.images.float() / 255
    pixels[3, 0, 2, 2] = torch.nan
    broken = with_train(digits, 0, Images(pixels, train.labels, 0))
    learner = STRATEGIES.get("naive")(setup_for(broken))
    with pytest.raises(DataError, match="NaN"):
        learner.train(broken.benchmark().train_stream[0])


@pytest.mark.parametrize("strategy", ["naive", "replay", "individual"])
def test_one_image_last_batch_with_batch_norm(
    digits: Scenario, trained: Callable[..., Any], strategy: str
) -> None:
    cut = digits
    for task in range(2):
        train = digits.tasks[task].train
        cut = with_train(cut, task, Images(train.images[::3][:65], train.labels[::3][:65], task))
    learner = trained(strategy, cut, backbone="mlp-bn", recipe={"epochs": 1})
    assert learner.logits(1, cut.tasks[1].test.images).isfinite().all()


def test_a_single_image_is_refused(digits: Scenario, setup_for: Callable[..., Setup]) -> None:
    train = digits.tasks[0].train
    cut = with_train(digits, 0, Images(train.images[:1], train.labels[:1], 0))
    learner = STRATEGIES.get("naive")(setup_for(cut))
    with pytest.raises(DataError, match="two or more"):
        learner.train(cut.benchmark().train_stream[0])


def test_avalanche_evaluates_to_the_same_accuracy(
    digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    setup = setup_for(digits)
    net = blueprint_of(setup).build(0)
    model = MultiHead(net, 0)
    pixels = Pixels(digits.mean, digits.std, digits.flip)
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
    strategy = Naive(
        model=model,
        optimizer=make_optimizer(QUICK, model.parameters()),
        train_mb_size=8,
        plugins=[TrainingPlugin(QUICK, pixels)],
        evaluator=evaluator,
    )
    benchmark = digits.benchmark()
    strategy.train(benchmark.train_stream[0])
    metrics = strategy.eval(benchmark.test_stream)  # the second task has no head yet
    learner = STRATEGIES.get("naive")(setup)
    learner.net, learner.model = net, model
    found = next(value for name, value in metrics.items() if name.endswith("Exp000"))
    assert found == pytest.approx(accuracy(learner, digits, 0))
    assert found > 0.9


def test_any_other_avalanche_plugin_trains_on_the_fast_path(
    digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    setup = setup_for(digits, recipe={"epochs": 2, "mixup": 0.4, "cutmix": 0.5})
    net = blueprint_of(setup).build(0)
    strategy = make_strategy(setup, MultiHead(net, 0), [LwFPlugin(alpha=1.0, temperature=2.0)])
    for experience in digits.benchmark().train_stream:
        strategy.train(experience, eval_streams=[])
    assert list(net.heads) == ["0", "1"]


def foreign(model: nn.Module, plugins: list[Any], kind: Any = Naive, **options: Any) -> Any:
    return kind(
        model=model,
        optimizer=make_optimizer(QUICK, model.parameters()),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=16,
        plugins=plugins,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
        **options,
    )


@pytest.mark.parametrize("normalised", [False, True])
def test_without_pixels_images_are_inputs(
    digits: Scenario, setup_for: Callable[..., Setup], normalised: bool
) -> None:
    model = MultiHead(blueprint_of(setup_for(digits)).build(0), 0)
    strategy = foreign(model, [TrainingPlugin(QUICK)])
    benchmark = digits.benchmark(normalised=normalised)
    strategy.train(benchmark.train_stream[0])
    metrics = strategy.eval(benchmark.test_stream[0])
    assert next(iter(metrics.values())) > 0.9


def test_images_normalised_twice_are_refused(
    digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    learner = STRATEGIES.get("naive")(setup_for(digits))
    with pytest.raises(DataError, match="expects 0 to 1"):
        learner.train(digits.benchmark(normalised=True).train_stream[0])


def test_a_strategy_with_richer_items_keeps_its_loader(
    digits: Scenario, setup_for: Callable[..., Setup]
) -> None:
    pixels = Pixels(digits.mean, digits.std, digits.flip)
    model = MultiHead(blueprint_of(setup_for(digits)).build(0), 0)
    strategy = foreign(model, [MoreItems(), TrainingPlugin(QUICK, pixels)])
    benchmark = digits.benchmark()
    strategy.train(benchmark.train_stream[0])
    assert strategy.kinds == {torch.float32}
    metrics = strategy.eval(benchmark.test_stream[0])
    assert next(iter(metrics.values())) > 0.9


class MoreItems(SupervisedPlugin):
    """Gives every item one more number."""

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: object) -> None:
        data = strategy.adapted_dataset
        numbers = DataAttribute([0] * len(data), name="number", use_in_getitem=True)
        strategy.adapted_dataset = data.update_data_attribute("number", numbers)
        strategy.kinds = set()

    def before_forward(self, strategy: Any, **kwargs: object) -> None:
        assert len(strategy.mbatch) == 4
        strategy.kinds.add(strategy.mb_x.dtype)
