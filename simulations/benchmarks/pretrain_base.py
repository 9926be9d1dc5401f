"""Train the base model that fedsprig ships: ResNet-20 of width 32 on 60 of CIFAR-100's classes.

    python simulations/benchmarks/pretrain_base.py CIFAR100.npz OUT_FOLDER

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
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from fedsprig.models.cifar_resnet import CifarResNet

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
EPOCHS, BATCH, PEAK_LR, WEIGHT_DECAY, SMOOTHING, SEED = 40, 128, 0.2, 5e-4, 0.1, 0


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


def normalise(images: np.ndarray) -> Tensor:
    """``uint8 [n, h, w, 3]`` to standardised ``float32 [n, 3, h, w]``, channels last."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


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
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data = np.load(args.data, allow_pickle=False)
    classes, superclass_of = data["classes"].tolist(), data["superclasses"]
    split = split_classes(superclass_of)
    label = np.full(len(classes), -1)
    label[split["base"]] = np.arange(len(split["base"]))
    train, test = (np.flatnonzero(label[data[f"y_{part}"]] >= 0) for part in ("train", "test"))
    x, y = normalise(data["x_train"][train]), torch.from_numpy(label[data["y_train"][train]])
    x_test, y_test = normalise(data["x_test"][test]), torch.from_numpy(label[data["y_test"][test]])

    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = CifarResNet(20, num_classes=len(split["base"]), width=32, shortcut="conv")
    model = model.to(memory_format=torch.channels_last)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.SGD(
        [{"params": decay, "weight_decay": WEIGHT_DECAY}, {"params": rest}],
        lr=PEAK_LR,
        momentum=0.9,
        nesterov=True,
    )
    steps = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_LR, EPOCHS * steps, pct_start=0.2
    )
    checkpoint, first = args.out / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        generator.set_state(saved["generator"])
        first = saved["epoch"]
    for epoch in range(first, EPOCHS):
        started, total = time.perf_counter(), 0.0
        model.train()
        for index in torch.randperm(len(x), generator=generator).split(BATCH)[:steps]:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(augment(x[index], generator))
            loss = F.cross_entropy(logits.float(), y[index], label_smoothing=SMOOTHING)
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
        print(f"epoch {epoch + 1}/{EPOCHS} loss {total / steps:.3f} {seconds:.0f} s", flush=True)

    model.eval()
    with torch.inference_mode():
        hits = sum(
            int((model(images).argmax(1) == labels).sum())
            for images, labels in zip(x_test.split(500), y_test.split(500), strict=True)
        )
    blob = save({k: v.contiguous() for k, v in model.state_dict().items()})
    (args.out / "sprig20.safetensors").write_bytes(blob)
    names = {part: [classes[i] for i in ids] for part, ids in split.items()}
    description = {
        "name": "sprig20",
        "architecture": "CIFAR ResNet-20, width 32, 1x1 shortcuts",
        "trained_on": "CIFAR-100, the 60 classes below (30,000 pictures)",
        "test_accuracy": round(hits / len(x_test), 4),
        "test_pictures": len(x_test),
        "sha256": hashlib.sha256(blob).hexdigest(),
        "input_size": 32,
        "mean": MEAN,
        "std": STD,
        "settings": {
            "epochs": EPOCHS,
            "batch": BATCH,
            "peak_learning_rate": PEAK_LR,
            "weight_decay": WEIGHT_DECAY,
            "label_smoothing": SMOOTHING,
            "seed": SEED,
            "precision": "bfloat16 autocast",
        },
        "classes": names,
    }
    (args.out / "sprig20.json").write_text(json.dumps(description, indent=2) + "\n")
    print(f"test accuracy {hits / len(x_test):.4f}", flush=True)


if __name__ == "__main__":
    main()
