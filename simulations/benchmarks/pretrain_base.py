"""Train base models of our own on 60 of CIFAR-100's classes: the shipped one, and a small ViT.

    python simulations/benchmarks/pretrain_base.py CIFAR100.npz OUT_FOLDER
    python simulations/benchmarks/pretrain_base.py CIFAR100.npz OUT_FOLDER --model sprig_vit

The transformer also learns what the shipped base says of every picture (Hinton et al. 2015, arXiv
1503.02531): from 30,000 pictures alone it learns little in the time that two cores have.

The other 40 classes stay unseen: 20 for library tasks and 20 for new tasks, so that scenarios can
draw both from pictures that the base never saw. In each of the 20 superclasses three classes go to
the base and one to each of the others (drawn with seed 0). Nothing is selected on the test
pictures: the last epoch is what is written.

The archive holds ``x_train, y_train, x_test, y_test, classes`` and ``superclasses`` (one per
class). Interrupted runs go on from the last epoch's checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from fedsprig.models import build, describe

SEED = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a base is trained.

    Attributes:
        architecture: In words.
        epochs: Passes over the pictures.
        batch: Pictures a step.
        peak_learning_rate: Of the one-cycle schedule.
        weight_decay: Of matrices and kernels.
        label_smoothing: Of the labels' part of the loss.
        optimiser: ``"sgd"`` with Nesterov's momentum, or ``"adamw"``.
        teacher: A shipped base whose class probabilities are half of what is learnt, or nothing.
    """

    architecture: str
    epochs: int
    batch: int = 128
    peak_learning_rate: float
    weight_decay: float
    label_smoothing: float = 0.1
    optimiser: str = "sgd"
    teacher: str = ""


RECIPES = {
    "sprig20": Recipe(
        architecture="CIFAR ResNet-20, width 32, 1x1 shortcuts",
        epochs=40,
        peak_learning_rate=0.2,
        weight_decay=5e-4,
    ),
    "sprig_vit": Recipe(
        architecture="vision transformer, patches of 4x4, 6 blocks of 192 features in 6 heads",
        epochs=20,
        peak_learning_rate=1e-3,
        weight_decay=0.05,
        optimiser="adamw",
        teacher="sprig20",
    ),
}


def split_classes(superclass_of: np.ndarray, seed: int = SEED) -> dict[str, list[int]]:
    """Three classes of every superclass for the base, one for the library, one for new tasks."""
    rng = np.random.default_rng(seed)
    split: dict[str, list[int]] = {"base": [], "library": [], "new": []}
    for coarse in np.unique(superclass_of):
        drawn = rng.permutation(np.flatnonzero(superclass_of == coarse))
        split["base"] += drawn[:3].tolist()
        split["library"].append(int(drawn[3]))
        split["new"].append(int(drawn[4]))
    return {part: sorted(ids) for part, ids in split.items()}


def normalise(images: np.ndarray, model: str) -> Tensor:
    """``uint8 [n, h, w, 3]`` to ``float32 [n, 3, h, w]`` as a model takes it, channels last."""
    card = describe(model)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (card.mean, card.std))
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


@torch.inference_mode()
def logits_of(name: str, images: np.ndarray, classes: int) -> Tensor:
    """What a shipped base says of pictures: ``[n, classes]``."""
    teacher = build(name, num_classes=classes, weights="shipped").eval()
    parts = (images[i : i + 500] for i in range(0, len(images), 500))
    return torch.cat([teacher(normalise(part, name)) for part in parts])


def optimiser_of(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Biases and normalisation are not decayed."""
    groups = [
        {
            "params": [p for p in model.parameters() if p.ndim > 1],
            "weight_decay": recipe.weight_decay,
        },
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rate = recipe.peak_learning_rate
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=rate)
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)


def augment(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Flip half of the pictures and shift each by up to four pixels."""
    n = len(batch)
    flip = torch.rand(n, generator=generator) < 0.5
    batch = torch.where(flip.view(-1, 1, 1, 1), batch.flip(-1), batch)
    padded = F.pad(batch, (4, 4, 4, 4), mode="reflect")
    windows = padded.unfold(2, 32, 1).unfold(3, 32, 1)
    dy, dx = torch.randint(0, 9, (2, n), generator=generator)
    return windows[torch.arange(n), :, dy, dx].contiguous(memory_format=torch.channels_last)


def main() -> None:
    """Train, evaluate once, write the weights and their description."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", choices=RECIPES, default="sprig20")
    args = parser.parse_args()
    recipe = RECIPES[args.model]
    args.out.mkdir(parents=True, exist_ok=True)
    data = np.load(args.data, allow_pickle=False)
    classes, superclass_of = data["classes"].tolist(), data["superclasses"]
    split = split_classes(superclass_of)
    label = np.full(len(classes), -1)
    label[split["base"]] = np.arange(len(split["base"]))
    train, test = (np.flatnonzero(label[data[f"y_{part}"]] >= 0) for part in ("train", "test"))
    pictures = data["x_train"][train]
    x, y = normalise(pictures, args.model), torch.from_numpy(label[data["y_train"][train]])
    x_test = normalise(data["x_test"][test], args.model)
    y_test = torch.from_numpy(label[data["y_test"][test]])
    said = logits_of(recipe.teacher, pictures, len(split["base"])) if recipe.teacher else None

    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = build(args.model, num_classes=len(split["base"]))
    model = model.requires_grad_(True).to(memory_format=torch.channels_last)
    optimiser = optimiser_of(model, recipe)
    steps = len(x) // recipe.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.peak_learning_rate, recipe.epochs * steps, pct_start=0.2
    )
    checkpoint, first = args.out / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        generator.set_state(saved["generator"])
        first = saved["epoch"]
    for epoch in range(first, recipe.epochs):
        started, total = time.perf_counter(), 0.0
        model.train()
        for index in torch.randperm(len(x), generator=generator).split(recipe.batch)[:steps]:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(augment(x[index], generator))
            logits = logits.float()
            loss = F.cross_entropy(logits, y[index], label_smoothing=recipe.label_smoothing)
            if said is not None:
                loss = (loss + F.cross_entropy(logits, said[index].softmax(1))) / 2
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        saved = {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
            "generator": generator.get_state(),
            "epoch": epoch + 1,
        }
        torch.save(saved, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)
        seconds = time.perf_counter() - started
        print(
            f"epoch {epoch + 1}/{recipe.epochs} loss {total / steps:.3f} {seconds:.0f} s",
            flush=True,
        )

    model.eval()
    with torch.inference_mode():
        hits = sum(
            int((model(images).argmax(1) == labels).sum())
            for images, labels in zip(x_test.split(500), y_test.split(500), strict=True)
        )
    blob = save({k: v.contiguous() for k, v in model.state_dict().items()})
    (args.out / f"{args.model}.safetensors").write_bytes(blob)
    names = {part: [classes[i] for i in ids] for part, ids in split.items()}
    card = describe(args.model)
    description = {
        "name": args.model,
        "architecture": recipe.architecture,
        "trained_on": "CIFAR-100, the 60 classes below (30,000 pictures)",
        "test_accuracy": round(hits / len(x_test), 4),
        "test_pictures": len(x_test),
        "sha256": hashlib.sha256(blob).hexdigest(),
        "input_size": card.input_size,
        "mean": card.mean,
        "std": card.std,
        "settings": {**asdict(recipe), "seed": SEED, "precision": "bfloat16 autocast"},
        "classes": names,
    }
    (args.out / f"{args.model}.json").write_text(json.dumps(description, indent=2) + "\n")
    print(f"test accuracy {hits / len(x_test):.4f}", flush=True)


if __name__ == "__main__":
    main()
