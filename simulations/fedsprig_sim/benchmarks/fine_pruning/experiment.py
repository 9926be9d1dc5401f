"""All arms over all seeds: learning rates chosen on validation pictures, figures on test ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from fedsprig.artifacts import digest, state_digest
from fedsprig.graph import trace_groups
from fedsprig.masks import plan_macs, plan_parameters
from fedsprig.models import ModelCard, build, describe
from fedsprig.spelling import lookup
from fedsprig.training import ImageSet, hold_out, read, recalibrate, require_classes, to_tensor
from fedsprig.training.readers.embedded import EMBEDDED
from fedsprig_sim.benchmarks.fine_pruning.course import (
    Course,
    Stage,
    Start,
    accuracy,
    trajectory,
)
from fedsprig_sim.benchmarks.fine_pruning.leak import measure_leak
from fedsprig_sim.benchmarks.fine_pruning.methods import ARMS, METHODS, Arm
from fedsprig_sim.benchmarks.fine_pruning.pruning import count_filters
from fedsprig_sim.benchmarks.fine_pruning.summary import summarise
from fedsprig_sim.benchmarks.kept import once
from fedsprig_sim.benchmarks.machine import machine
from fedsprig_sim.progress import Progress, Silence

_SPLIT_SEED = 0
_LEAK_PICTURES = 256
_STATISTICS_PICTURES = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Pictures that a network is judged by, as it takes them."""

    images: Tensor
    labels: Tensor
    digest: str

    @classmethod
    def of(cls, image_set: ImageSet, card: ModelCard) -> Pictures:
        """Standardise a set for a model."""
        arrays = {"images": image_set.images, "labels": image_set.labels}
        labels = torch.from_numpy(image_set.labels)
        return cls(to_tensor(image_set.images, card), labels, state_digest(arrays))


def run(
    folder: Path,
    *,
    data: str = "digits",
    model: str = "sprig20",
    weights: str | None = "shipped",
    seeds: int = 3,
    arms: Sequence[str] = tuple(ARMS),
    rates: Mapping[str, Sequence[float]] | None = None,
    pictures: int = 20_000,
    validation_pictures: int = 2_000,
    test_pictures: int = 4_000,
    course: Course | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare.

    Every arm's learning rate is chosen with the first seed, by the mean validation accuracy at the
    reported densities; a leaking arm takes the rate of its exact counterpart, so that the leak is
    all that differs. Test pictures are not looked at before that.

    Args:
        folder: Stages and figures are kept there; what it holds is not computed again.
        data: Name of an embedded set, or path of an ``.npz`` with splits ``train`` and ``test``.
        model: Base model by name.
        weights: Its weights; without any they are random.
        seeds: Repetitions.
        arms: Names of ``ARMS``.
        rates: Learning rates to choose from by method, in place of the method's own.
        pictures: Training pictures, about; evenly drawn from the classes.
        validation_pictures: Taken out of the training pictures, a fifth of them at the most.
        test_pictures: About, in the same way.
        course: The way down.
        progress: Told of every trajectory.

    Returns:
        Plain data: settings, the machine, the rates that were tried, and every arm's figures by
        density.

    Raises:
        UnknownNameError: No such arm.
        FedsprigError: Data, model or weights that cannot be used.
    """
    course, progress = course or Course(), progress or Silence()
    chosen_arms = [lookup(ARMS, name, "arm") for name in arms]
    start, validation, test = _prepare(
        folder, data, model, weights, pictures, validation_pictures, test_pictures
    )
    methods = list(dict.fromkeys(arm.method for arm in chosen_arms))
    candidates = {m: tuple((rates or {}).get(m, METHODS[m].rates)) for m in methods}

    tried: dict[str, dict[float, list[float]]] = {}
    progress.begin("learning rates", sum(map(len, candidates.values())))
    for method, choices in candidates.items():
        tried[method] = {}
        for rate in choices:
            stages = trajectory(start, course, Arm(method, leaks=False), rate, 0)
            scores = [
                _validated(stage, start, validation, course)["accuracy"]
                for stage in stages
                if stage.density in course.reported
            ]
            tried[method][rate] = scores
            progress.step("learning rates", f"{method} at {rate:g}: {_percents(scores)}")
    best = {m: max(found, key=lambda rate: mean(found[rate])) for m, found in tried.items()}

    measured: dict[str, list[dict[float, dict[str, Any]]]] = {arm.name: [] for arm in chosen_arms}
    progress.begin("trajectories", seeds * len(chosen_arms))
    for seed in range(seeds):
        for arm in chosen_arms:
            figures = {
                stage.density: _tested(stage, start, test, course)
                for stage in trajectory(start, course, arm, best[arm.method], seed)
                if stage.density in (1.0, *course.reported)
            }
            measured[arm.name].append(figures)
            found = _percents([figure["accuracy"] for figure in figures.values()])
            progress.step("trajectories", f"{arm.name}, seed {seed}: {found}")
    return {
        "data": Path(data).name,
        "model": model,
        "pictures": {
            "train": len(start.labels),
            "validation": len(validation.labels),
            "test": len(test.labels),
        },
        "course": {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(course).items()},
        "seeds": seeds,
        "machine": machine(),
        "rates": {
            method: {"chosen": best[method], "tried": {f"{r:g}": s for r, s in found.items()}}
            for method, found in tried.items()
        },
        "arms": summarise(measured),
    }


def _prepare(
    folder: Path,
    data: str,
    model: str,
    weights: str | None,
    pictures: int,
    validation_pictures: int,
    test_pictures: int,
) -> tuple[Start, Pictures, Pictures]:
    card = describe(model)
    kind = "embedded" if data in EMBEDDED else "npz"
    whole, test = (read(kind, data, split=split) for split in ("train", "test"))
    require_classes(whole)
    rest, validation = hold_out(
        whole, min(validation_pictures, len(whole) // 5) / len(whole), seed=_SPLIT_SEED
    )
    train, test = _at_most(rest, pictures), _at_most(test, test_pictures)
    base = build(model, num_classes=len(whole.classes), weights=weights)
    example = torch.zeros(1, 3, card.input_size, card.input_size)
    state = {name: value.numpy() for name, value in base.state_dict().items()}
    pixels = Pictures.of(train, card)
    start = Start(
        base=base,
        plan=trace_groups(base, example, name=model),
        images=pixels.images.contiguous(memory_format=torch.channels_last),
        labels=pixels.labels,
        digest=digest((state_digest(state) + pixels.digest).encode()),
        folder=folder,
    )
    return start, Pictures.of(validation, card), Pictures.of(test, card)


def _at_most(images: ImageSet, count: int) -> ImageSet:
    if count >= len(images):
        return images
    return hold_out(images, count / len(images), seed=_SPLIT_SEED)[1]


def _validated(stage: Stage, start: Start, pictures: Pictures, course: Course) -> dict[str, Any]:
    def measure() -> dict[str, Any]:
        module = stage.network.module
        return {"accuracy": accuracy(module, pictures.images, pictures.labels, course)}

    return once(start.folder / f"{stage.key}-{pictures.digest[:16]}.validation.json", measure)


def _tested(stage: Stage, start: Start, pictures: Pictures, course: Course) -> dict[str, Any]:
    """Every figure of a network. What is counted is what the mask leaves, as the paper counts."""

    def measure() -> dict[str, Any]:
        network = stage.network
        plan = network.plan
        small = network.cut()
        figures: dict[str, Any] = {
            "accuracy": accuracy(network.module, pictures.images, pictures.labels, course),
            "trained": sum(p.numel() for p in small.parameters() if p.requires_grad),
            "filters": count_filters(plan, network.mask),
            "parameters": plan_parameters(plan, network.mask),
            "macs": plan_macs(plan, network.mask),
        }
        if network.leaks and stage.density < 1:
            recalibrate(small, start.images[:_STATISTICS_PICTURES])
            cut = accuracy(small, pictures.images, pictures.labels, course)
            figures["leak"] = asdict(measure_leak(network, pictures.images[:_LEAK_PICTURES]))
            figures["leak"]["accuracy_once_cut"] = cut
        return figures

    return once(start.folder / f"{stage.key}-{pictures.digest[:16]}.test.json", measure)


def _percents(values: Iterable[float]) -> str:
    return ", ".join(f"{100 * value:.1f} %" for value in values)
