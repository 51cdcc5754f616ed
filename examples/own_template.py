"""Firefly in a training template of your own: FireflyModel for the model, FireflyPlugin beside it.

The template here clips gradients; any SupervisedTemplate does, Avalanche's Naive among them. The
plugin starts a task where an experience begins, grows it on the plan's schedule, and freezes it
where the experience ends.

    python examples/own_template.py
"""

from __future__ import annotations

import io

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TextLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from firefly_cl.continual.growing import FireflyPlugin
from firefly_cl.continual.model import FireflyModel
from firefly_cl.continual.plan import Plan
from firefly_cl.network import extract
from firefly_cl.scenarios import SCENARIOS, ScenarioOptions


class ClippedTraining(SupervisedTemplate):
    """Avalanche's supervised training with the norm of the gradient held at 1."""

    def optimizer_step(self) -> None:
        """Clip, then step."""
        for group in self.optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        super().optimizer_step()


def network() -> nn.Module:
    """A small convolutional network for 8 x 8 digits."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 2),
    )


def main() -> list[list[float]]:
    """Learn the digits pair by pair; accuracy on the tasks so far after each of them."""
    torch.manual_seed(0)
    scenario = SCENARIOS.get("split-digits")(ScenarioOptions())
    stream = scenario.benchmark(normalised=True)

    plan = Plan(seed=0.25, growth=0.25, grow_at=(0.2, 0.4))
    model = FireflyModel.wrap(network(), torch.zeros(2, 1, 8, 8), plan)
    firefly = FireflyPlugin(plan)
    log = io.StringIO()  # or a file, or one of Avalanche's other loggers
    strategy = ClippedTraining(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        train_epochs=5,
        plugins=[firefly],
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[TextLogger(log)]),
    )

    accuracies = []
    for experience in stream.train_stream:
        strategy.train(experience)
        seen = stream.test_stream[: experience.current_experience + 1]
        metrics = strategy.eval(seen)
        row = [value for name, value in metrics.items() if name.startswith("Top1_Acc_Exp")]
        accuracies.append(row[: len(seen)])
        print(f"after task {model.net.current}: " + " ".join(f"{a:.3f}" for a in accuracies[-1]))

    for event in firefly.events:
        print(f"task {event['task']}, epoch {event['epoch']}: grew {event['kinds']}")
    print(f"units by owner task: {model.net.widths()}")
    alone = extract(model.net, 0)  # the first task as a plain torch.nn.Module
    print(f"numbers in the first task's own module: {sum(p.numel() for p in alone.parameters())}")
    return accuracies


if __name__ == "__main__":
    main()
