"""FireflyStrategy as an Avalanche template: streams, evaluators, loggers, awkward experiences."""

from __future__ import annotations

import copy
import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import InteractiveLogger, TensorboardLogger, TextLogger
from avalanche.training.plugins import EvaluationPlugin
from growing_streams import (
    PLAN,
    RECIPE,
    accuracy,
    backbone,
    drawn,
    growing,
    stream_of,
)
from torch import nn
from torch.utils.data import TensorDataset

from firefly_cl.continual.model import FireflyModel
from firefly_cl.continual.plan import Plan
from firefly_cl.continual.strategy import FireflyStrategy
from firefly_cl.errors import ConfigurationError, DataError, DivergenceError, UnsupportedOperation

TWO = [((0, 1), 24), ((2, 3), 24)]
LONGER = dataclasses.replace(RECIPE, epochs=6)


def test_learns_each_task() -> None:
    strategy = growing("concat", recipe=LONGER)
    benchmark = stream_of([((0, 1), 32), ((2, 3, 4), 32)])
    for experience in benchmark.train_stream:
        strategy.train(experience)
    for experience in benchmark.test_stream:
        assert accuracy(strategy.model, experience) >= 0.9


def test_learns_with_avalanches_own_loops() -> None:
    strategy = growing("concat", recipe=None, train_epochs=6, train_mb_size=16)
    benchmark = stream_of([((0, 1), 32), ((2, 3, 4), 32)])
    strategy.train(benchmark.train_stream)
    for experience in benchmark.test_stream:
        assert accuracy(strategy.model, experience) >= 0.9


def test_evaluates_the_full_stream_from_the_start() -> None:
    evaluator = EvaluationPlugin(
        accuracy_metrics(minibatch=True, epoch=True, experience=True, stream=True),
        loss_metrics(experience=True, stream=True),
        forgetting_metrics(experience=True, stream=True),
    )
    strategy = growing(evaluator=evaluator)
    benchmark = stream_of([*TWO, ((4, 5, 6), 16)])
    nothing = strategy.eval(benchmark.test_stream)
    assert len(strategy.net.tasks) == 1 and not strategy.model.tasks
    assert nothing["Top1_Acc_Exp/eval_phase/test_stream/Task001/Exp001"] <= 0.6
    results = []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        results.append(strategy.eval(benchmark.test_stream))
    for task in range(3):
        name = f"Top1_Acc_Exp/eval_phase/test_stream/Task{task:03d}/Exp{task:03d}"
        assert len({result[name] for result in results[task:]}) == 1
        shown = accuracy(strategy.model, benchmark.test_stream[task])
        assert results[-1][name] == pytest.approx(shown)
    assert results[-1]["StreamForgetting/eval_phase/test_stream"] == 0


def test_eval_every_epoch_changes_nothing() -> None:
    benchmark = stream_of(TWO)
    states = []
    for every in (-1, 1):
        strategy = growing("resnet9", eval_every=every)
        for experience in benchmark.train_stream:
            strategy.train(experience, eval_streams=[benchmark.test_stream])
        states.append(strategy.net.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_loggers_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = io.StringIO()
    evaluator = EvaluationPlugin(
        accuracy_metrics(epoch=True, experience=True, stream=True),
        loggers=[InteractiveLogger(), TextLogger(text), TensorboardLogger(tmp_path)],
    )
    strategy = growing(evaluator=evaluator)
    benchmark = stream_of(TWO)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    assert "Top1_Acc_Stream/eval_phase/test_stream" in text.getvalue()
    assert "Top1_Acc_Epoch/train_phase" in capsys.readouterr().out
    assert any(path.stat().st_size for path in tmp_path.rglob("events*"))


def test_experiences_may_differ_in_size_and_classes() -> None:
    strategy = growing("resnet9")
    benchmark = stream_of([((0, 1), 40), ((0, 1, 2, 3, 4), (3, 9, 5, 4, 4)), ((0, 1, 2), 10)])
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    assert [task.classes for task in strategy.net.tasks] == [2, 5, 3]


@pytest.mark.parametrize("recipe", [LONGER, None])
def test_labels_need_not_start_at_zero(recipe: Any) -> None:
    train, test = (TensorDataset(*drawn(range(6), 24, seed)) for seed in (0, 1))
    for data in (train, test):
        data.targets = data.tensors[1].tolist()  # type: ignore[attr-defined]
    benchmark = nc_benchmark(
        train,
        test,
        n_experiences=3,
        task_labels=True,
        shuffle=False,
        class_ids_from_zero_in_each_exp=False,
    )
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True))
    strategy = growing(
        "concat", recipe=recipe, train_epochs=6, train_mb_size=16, evaluator=evaluator
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
        result = strategy.eval(benchmark.test_stream)
    assert min(result.values()) >= 0.8


@pytest.mark.parametrize("recipe", [RECIPE, None])
def test_a_last_batch_of_one_image(recipe: Any) -> None:
    plan = dataclasses.replace(PLAN, validation=0)
    strategy = growing("resnet9", plan=plan, recipe=recipe, train_epochs=2, train_mb_size=16)
    for experience in stream_of([((0, 1), (16, 17)), ((2, 3), (9, 8))]).train_stream:
        strategy.train(experience)
    assert len(strategy.net.tasks) == 2
    assert all(value.isfinite().all() for value in strategy.net.state_dict().values())


def test_several_experiences_at_once() -> None:
    strategy = growing()
    strategy.train(stream_of(TWO).train_stream)
    assert len(strategy.net.tasks) == 2 and all(task.frozen for task in strategy.net.tasks)


def test_takes_a_net_or_a_model_as_it_is() -> None:
    strategy = growing()
    strategy.train(stream_of(TWO).train_stream[0])
    again = FireflyStrategy(model=strategy.model, plan=PLAN, recipe=RECIPE)
    assert again.net is strategy.net
    again.train(stream_of(TWO).train_stream[1])
    assert len(again.net.tasks) == 2
    grown = FireflyStrategy(model=FireflyModel(growing().net, PLAN), recipe=RECIPE)
    grown.train(stream_of(TWO).train_stream[0])
    assert grown.model.tasks == {0: 0}


def test_the_plan_of_a_model_is_that_of_the_strategy() -> None:
    plan = dataclasses.replace(PLAN, growth=0.75, validation=0.2)
    strategy = FireflyStrategy(model=FireflyModel(growing().net, plan), recipe=RECIPE)
    assert strategy.firefly.plan is strategy.model.plan is plan
    with pytest.raises(ConfigurationError, match="another growth, validation: give the same plan"):
        FireflyStrategy(model=FireflyModel(growing().net, plan), plan=PLAN)


# --- what cannot be learnt --------------------------------------------------------------------


def test_an_empty_experience() -> None:
    benchmark = stream_of([((0, 1), 8), ((2, 3), 0)])
    strategy = growing()
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(DataError, match="experience 1 is empty"):
        strategy.train(benchmark.train_stream[1])
    assert len(strategy.net.tasks) == 1


def test_a_single_class() -> None:
    strategy = growing()
    with pytest.raises(DataError, match=r"single class \[3\]: join it"):
        strategy.train(stream_of([((3,), 8)]).train_stream[0])


def test_a_repeated_task_label() -> None:
    strategy = growing()
    experience = stream_of(TWO).train_stream[0]
    strategy.train(experience)
    with pytest.raises(ConfigurationError, match="task label 0, which was learnt before"):
        strategy.train(experience)


def test_pixels_that_are_no_numbers() -> None:
    from growing_streams import dataset_of

    images, labels = drawn((0, 1), 8, seed=0)
    images[3, 0, 2, 2] = torch.nan
    benchmark = stream_of(TWO)
    experience = benchmark.train_stream[0]
    experience._dataset = dataset_of(images, labels, 0)
    with pytest.raises(DataError, match="NaN or infinite pixels"):
        growing().train(experience)


def test_a_loss_that_is_no_number_reaches_no_weight() -> None:
    strategy = growing("resnet9", recipe=dataclasses.replace(RECIPE, learning_rate=1e12))
    with pytest.raises(DivergenceError, match="lower the learning rate"):
        strategy.train(stream_of(TWO).train_stream[0])


def test_divergence_leaves_older_tasks_alone() -> None:
    strategy = growing("resnet9", plan=dataclasses.replace(PLAN, grow_at=()))
    benchmark = stream_of(TWO)
    strategy.train(benchmark.train_stream[0])
    before = accuracy(strategy.model, benchmark.test_stream[0])

    def broken(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits.sum() * torch.inf

    strategy._criterion = broken
    with pytest.raises(DivergenceError, match="task 1, epoch 1, step 1"):
        strategy.train(benchmark.train_stream[1])
    assert accuracy(strategy.model, benchmark.test_stream[0]) == before


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_training_that_was_broken_off_leaves_evaluation_as_it_was(mixup: float) -> None:
    recipe = dataclasses.replace(RECIPE, mixup=mixup, batch_size=10, label_smoothing=0.0)
    strategy = growing(recipe=recipe, plan=dataclasses.replace(PLAN, grow_at=()))
    benchmark = stream_of(TWO)
    strategy.train(benchmark.train_stream[0])
    logits, labels = torch.tensor([[4.0, 0.0]]), torch.tensor([0])
    expected = torch.nn.functional.cross_entropy(logits, labels)
    plain = strategy.model.forward

    def broken(*args: Any) -> Any:
        if strategy.model.training:
            raise KeyboardInterrupt
        return plain(*args)

    diverging = strategy._criterion.plain
    for error, target, name, put in (
        (DivergenceError, strategy._criterion, "plain", lambda x, y: x.sum() * torch.inf),
        (KeyboardInterrupt, strategy.model, "forward", broken),
    ):
        again = copy.deepcopy(benchmark)
        setattr(target, name, put)
        with pytest.raises(error):
            strategy.train(again.train_stream[1])
        setattr(target, name, diverging if name == "plain" else plain)
        strategy.eval(benchmark.test_stream[:1])
        assert strategy._criterion(logits, labels) == expected
        with pytest.raises(ConfigurationError, match="task label 1 was broken off: begin with"):
            strategy.train(again.train_stream[1])
        strategy.model.tasks.pop(1)
        strategy.model.net.freeze()


def test_a_plain_model_needs_an_example() -> None:
    with pytest.raises(ConfigurationError, match="pass example_input"):
        FireflyStrategy(model=backbone())


def test_a_model_that_cannot_grow() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    with pytest.raises(UnsupportedOperation, match="LayerNorm"):
        FireflyStrategy(model=model, example_input=torch.zeros(2, 1, 8, 8))


def test_plans_that_cannot_work() -> None:
    for changes in ({"seed": -1}, {"validation": 1}, {"grow_at": (1.0,)}, {"growth": 11}):
        with pytest.raises(ConfigurationError, match=next(iter(changes))):
            Plan(**changes)
    with pytest.raises(ConfigurationError, match="unknown firefly setting 'speed'"):
        growing(plan=Plan(settings={"speed": 3}))
