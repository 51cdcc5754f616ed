"""Avalanche's own quick example with firefly in the place of Naive.

Model, benchmark, optimizer, criterion, strategy and loop follow the README of Avalanche, and the
loggers and metrics its getting-started guide. What firefly asks of a pipeline is that every
experience has a task label of its own, and one batch of inputs to trace the model with.

    python examples/avalanche_pipeline.py                             # digits, nothing to download
    python examples/avalanche_pipeline.py --benchmark split-mnist     # Avalanche fetches MNIST
    python examples/avalanche_pipeline.py --benchmark permuted-mnist
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from avalanche.benchmarks.classic import PermutedMNIST, SplitMNIST
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import InteractiveLogger, TextLogger
from avalanche.models import SimpleMLP
from avalanche.training.plugins import EvaluationPlugin
from torch.nn import CrossEntropyLoss
from torch.optim import SGD

from firefly_cl.continual.strategy import FireflyStrategy
from firefly_cl.scenarios import SCENARIOS, ScenarioOptions


def benchmark(name: str) -> tuple[Any, tuple[int, int, int]]:
    """An Avalanche benchmark and the shape of its images."""
    if name == "split-mnist":
        split = SplitMNIST(
            n_experiences=5, return_task_id=True, class_ids_from_zero_in_each_exp=True, seed=1
        )
        return split, (1, 28, 28)
    if name == "permuted-mnist":
        return PermutedMNIST(n_experiences=3, return_task_id=True, seed=1), (1, 28, 28)
    digits = SCENARIOS.get("split-digits")(ScenarioOptions(seed=1))
    return digits.benchmark(normalised=True), digits.image_shape


def main() -> list[dict[str, float]]:
    """Train on each experience, evaluate on the whole test stream; the metrics after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    choices = ("split-digits", "split-mnist", "permuted-mnist")
    parser.add_argument("--benchmark", choices=choices, default=choices[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--log", metavar="FILE", help="write the text log here")
    arguments = parser.parse_args()

    # Config
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(1)

    # CL benchmark creation
    scenario, shape = benchmark(arguments.benchmark)
    train_stream = scenario.train_stream
    test_stream = scenario.test_stream

    # Model
    model = SimpleMLP(num_classes=10, input_size=shape[1] * shape[2], hidden_size=64)

    # Loggers and metrics
    loggers = [InteractiveLogger()]
    if arguments.log is not None:
        loggers.append(TextLogger(open(arguments.log, "w")))
    evaluator = EvaluationPlugin(
        accuracy_metrics(epoch=True, experience=True, stream=True),
        loss_metrics(epoch=True, experience=True),
        forgetting_metrics(experience=True, stream=True),
        loggers=loggers,
    )

    # Prepare for training and testing
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    criterion = CrossEntropyLoss()

    # Continual learning strategy: this is where Naive stood
    cl_strategy = FireflyStrategy(
        model=model,
        example_input=torch.zeros(2, *shape),
        optimizer=optimizer,
        criterion=criterion,
        train_mb_size=32,
        train_epochs=arguments.epochs,
        eval_mb_size=32,
        device=device,
        evaluator=evaluator,
    )

    # Train and test loop over the stream of experiences
    results = []
    for experience in train_stream:
        cl_strategy.train(experience)
        results.append(cl_strategy.eval(test_stream))

    for space, widths in cl_strategy.net.widths().items():
        print(f"units of {space} by owner task: {widths}", file=sys.stderr)
    return results


if __name__ == "__main__":
    main()
