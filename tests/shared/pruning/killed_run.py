"""A pruning run for the tests to kill: says when a round begins, prints the product's digest."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from fedsprig.graph import trace_groups
from fedsprig.models.cifar_resnet import CifarResNet
from fedsprig.pruning import PRUNERS, Job, Labelled, Target
from fedsprig.training import TrainConfig


def job(text: str, policy: str) -> Job:
    """A tiny job that follows from nothing but the arguments."""
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CifarResNet(8, num_classes=2, width=4, shortcut="pad").eval()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(40, 3, 8, 8, generator=generator)
    labels = torch.arange(40) % 2
    images += labels[:, None, None, None] - 0.5
    plan = trace_groups(model, torch.zeros(1, 3, 8, 8), name="killed")
    return Job(
        model=model,
        plan=plan,
        train=Labelled(images[:30], labels[:30]),
        validation=Labelled(images[30:], labels[30:]),
        target=Target.parse(policy, text, plan),
        seed=7,
    )


def main(folder: str, method: str, policy: str, text: str, rewind: str) -> None:
    """Prune, telling every step."""
    training = TrainConfig(epochs=2, batch_size=10, learning_rate=0.05)
    pruner = replace(PRUNERS[method], training=training)
    if method == "aap":
        pruner = replace(pruner, rounds=6, first_share=0.1, rewind=rewind)
    product = pruner.prune(
        job(text, policy),
        progress=lambda stage, done, steps: print(f"{stage} {done}/{steps}", flush=True),
        checkpoint=Path(folder),
    )
    print("product", product.scores.digest, product.mask.digest, flush=True)
    print(sorted(product.metrics.items()), flush=True)
    Path(folder, "product").write_bytes(product.weights_bytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
