"""Firefly without Avalanche: a growing network in a plain PyTorch loop.

Convert a model, train it, freeze it, begin a task with a few units of its own, train those, grow
them by a criterion, and take any task's function out as a plain module.

    python examples/plain_loop.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from firefly_cl.growth import CRITERIA
from firefly_cl.growth.budget import Budget
from firefly_cl.network import FireflyNet, extract, floats
from firefly_cl.network.rebuild import migrate
from firefly_cl.scenarios import SCENARIOS, Batches, Images, Scenario, ScenarioOptions
from firefly_cl.zoo import BACKBONES

EPOCHS, GROW_AFTER = 8, 3

Model = Callable[[Tensor], Tensor]


def batches(scenario: Scenario, images: Images, *, shuffle: bool, seed: int = 0) -> Batches:
    """Normalised batches of [inputs, labels, tasks] from images in memory."""
    return Batches(
        images,
        32 if shuffle else 256,
        mean=scenario.mean,
        std=scenario.std,
        augmentation=None,
        shuffle=shuffle,
        generator=torch.Generator().manual_seed(seed),
        device="cpu",
    )


def cross_entropy(model: Model, batch: list[Tensor]) -> Tensor:
    """The loss that training and growth go down."""
    return F.cross_entropy(model(batch[0]), batch[1])


def train(net: FireflyNet, data: Batches) -> None:
    """Train the newest task's units and grow them once on the way."""
    optimizer = torch.optim.SGD(net.trainable(), lr=0.05, momentum=0.9)
    criterion = CRITERIA.get("firefly")(news=8, copies=8)
    net.train()
    for epoch in range(EPOCHS):
        for batch in data:
            optimizer.zero_grad()
            cross_entropy(net, batch).backward()
            optimizer.step()
        if epoch + 1 == GROW_AFTER:
            own = sum(parameter.numel() for parameter in net.trainable())
            growth = criterion.grow(
                net,
                list(data),
                cross_entropy,
                Budget(max(own // 4, 100), "parameters"),
                torch.Generator().manual_seed(net.current),
            )
            for edit in growth.edits:  # momentum moves with the units
                migrate(optimizer, edit)
            print(f"  grew {growth.by_kind()}, expecting the loss to fall by {growth.gain:.3f}")


@torch.no_grad()
def logits(model: Model, data: Batches) -> tuple[Tensor, Tensor]:
    """Answers and labels on some batches, in order."""
    parts = [(model(x), y) for x, y, _ in data]
    return torch.cat([answers for answers, _ in parts]), torch.cat([y for _, y in parts])


def main() -> list[float]:
    """Learn three pairs of digits; the test accuracy of each at the end."""
    scenario = SCENARIOS.get("split-digits")(ScenarioOptions(first_tasks=3))
    model = BACKBONES.get("mlp-bn")(
        n_classes=2,
        in_channels=1,
        image_size=8,
        constant_width=24,
        generator=torch.Generator().manual_seed(0),
    )
    net = FireflyNet.from_module(model, torch.zeros(2, *scenario.image_shape))
    remembered = []
    for task in scenario.tasks:
        if task.index > 0:  # task 0 is the model as it came
            generator = torch.Generator().manual_seed(task.index)
            net.begin_task(len(task.classes), widths=8, generator=generator)
        print(f"task {task.index} ({task.name}): {len(net.trainable())} trainable tensors")
        train(net, batches(scenario, task.train, shuffle=True, seed=task.index))
        net.freeze()
        net.eval()
        test = batches(scenario, task.test, shuffle=False)
        remembered.append(logits(lambda x, t=task.index: net(x, t), test)[0])

    accuracies = []
    for task, before in zip(scenario.tasks, remembered, strict=True):
        test = batches(scenario, task.test, shuffle=False)
        now, labels = logits(lambda x, t=task.index: net(x, t), test)
        plain = extract(net, task.index)  # an ordinary torch.nn.Module
        alone, _ = logits(plain, test)
        accuracies.append((now.argmax(1) == labels).float().mean().item())
        print(
            f"task {task.index}: accuracy {accuracies[-1]:.3f}, "
            f"logits as when it ended: {torch.equal(now, before)}, "
            f"extracted alike: {torch.allclose(alone, now, atol=1e-5)}"
        )
    print(f"units by owner task: {net.widths()}; {floats(net)} floats in all")
    return accuracies


if __name__ == "__main__":
    main()
