"""Describing a task on a device: one forward pass over its pictures, no gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import LabelRangeError, SketchError
from fedsprig.graph.plan import GroupPlan, Tap
from fedsprig.tasks.prototype_head import projected_variance
from fedsprig.tasks.similarity.evidence import Evidence, Features
from fedsprig.tasks.task_sketch import TaskSketch

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH: Final = 128


def observe(
    model: nn.Module,
    plan: GroupPlan | None,
    head: str,
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    *,
    probe: str,
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Evidence:
    """Describe labelled pictures by the features that a probe gives them, and keep these features.

    Args:
        model: The probe. It is used in evaluation mode and handed back in the mode it came in.
        plan: The probe's own group plan where the fingerprint is wanted, else ``None``.
        head: Module path of its classifier, whose input ``[n, features]`` the features are.
        images: Preprocessed pictures, float ``[n, 3, height, width]``, on any device.
        labels: int64 ``[n]``, from 0 to ``len(classes) - 1``.
        classes: A name by class; empty texts keep the names private.
        probe: Digest that names the probe, as the server gives it.
        noise: Standard deviation of Gaussian noise on every coordinate of a prototype and of the
            fingerprint, and on the spread, in units of the root mean square of what it is added to.
            It blurs what a class of few pictures gives away; it is no proof of differential
            privacy, since features are not clipped. Counts stay exact. 0 adds none. Features are
            never blurred: they are not for sending.
        rng: Where the noise is drawn from; needed when ``noise`` is not 0.

    Raises:
        SketchError: No pictures, no such head, features that are no finite ``[n, features]``, or
            noise without ``rng``.
        LabelRangeError: A label that no class has.
    """
    if noise < 0 or (noise > 0 and rng is None):
        raise SketchError(f"noise {noise}: use a number from 0 up, and pass rng with it")
    _check_labels(images, labels, len(classes))
    sums, fingerprint, features = _measure(model, plan, head, images, labels, len(classes))
    numbers = labels.cpu().numpy()
    counts = np.bincount(numbers, minlength=len(classes)).astype(np.int64)
    prototypes = sums / np.maximum(counts, 1)[:, None]
    spread = np.array(projected_variance(features, numbers, prototypes))
    if noise > 0 and rng is not None:
        present = counts > 0
        prototypes[present] = _blurred(prototypes[present], noise, rng)
        fingerprint = np.maximum(_blurred(fingerprint, noise, rng), 0.0)
        spread = np.abs(_blurred(spread, noise, rng))
    described = TaskSketch(
        probe=probe,
        prototypes=prototypes.astype(np.float32),
        counts=counts,
        classes=tuple(classes),
        fingerprint=fingerprint.astype(np.float32),
        groups=tuple(group.units for group in plan.groups) if plan else (),
        spread=float(spread),
    )
    return Evidence(described, Features(features, numbers.astype(np.int64)))


def _check_labels(images: Tensor, labels: Tensor, classes: int) -> None:
    if len(images) == 0 or labels.shape != (len(images),):
        raise SketchError(
            f"{len(images)} pictures with labels of shape {tuple(labels.shape)}: give every "
            "picture one label, and at least one picture"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise LabelRangeError(
            f"labels from {low} to {high}, but classes from 0 to {classes - 1}: mend the labels"
        )


def _blurred(
    values: NDArray[np.float64], noise: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    scale = noise * float(np.sqrt(np.mean(values**2))) if values.size else 0.0
    return values + rng.normal(0.0, 1.0, values.shape) * scale


def _measure(
    model: nn.Module,
    plan: GroupPlan | None,
    head: str,
    images: Tensor,
    labels: Tensor,
    classes: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float32]]:
    """Sums of features by class, mean absolute activations ``[units]``, and the features."""
    import torch

    from fedsprig.training.modes import device_of, keeping_modes, labelled_batches, on_device

    seen: list[Tensor] = []
    groups = [np.zeros(group.units) for group in plan.groups] if plan else []
    sums: dict[int, NDArray[np.float64]] = {}
    kept: list[NDArray[np.float32]] = []
    device = device_of(model)
    with (
        keeping_modes(model),
        _watching(model, plan, head, seen, groups),
        torch.inference_mode(),
    ):
        model.eval()
        for batch, batch_labels in labelled_batches(images, labels, BATCH):
            seen.clear()
            model(on_device(batch, device))
            rows = batch_labels.cpu().numpy()
            features = _features(seen, head, len(batch))
            kept.append(features.astype(np.float32))
            for label in np.unique(rows):
                sums[label] = sums.get(label, 0.0) + features[rows == label].sum(axis=0)
    width = len(next(iter(sums.values())))
    whole = np.stack([sums.get(label, np.zeros(width)) for label in range(classes)])
    means = np.concatenate(groups) / len(images) if groups else np.zeros(0)
    return whole, means, np.concatenate(kept)


def _features(seen: list[Tensor], head: str, pictures: int) -> NDArray[np.float64]:
    if len(seen) != 1 or seen[0].ndim != 2 or len(seen[0]) != pictures:
        raise SketchError(
            f"module {head!r} does not take one [pictures, features] input in a forward pass: "
            "name the classifier as head"
        )
    features: NDArray[np.float64] = seen[0].double().cpu().numpy()
    if not np.isfinite(features).all():
        raise SketchError("the probe's features are not finite: check pictures and weights")
    return features


@contextmanager
def _watching(
    model: nn.Module,
    plan: GroupPlan | None,
    head: str,
    seen: list[Tensor],
    groups: list[NDArray[np.float64]],
) -> Iterator[None]:
    """Put the head's input into ``seen`` and add activations to ``groups`` while this is open."""
    if not head:
        raise SketchError("a sketch needs the probe's classifier: pass its module path as head")
    handles: list[Any] = []
    try:
        handles.append(
            _module(model, head).register_forward_pre_hook(
                lambda _module, inputs: seen.append(inputs[0].detach())
            )
        )
        for total, group in zip(groups, plan.groups if plan else (), strict=True):
            for tap in group.taps:
                handles.append(_hook(model, tap, total, len(group.taps)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(model: nn.Module, tap: Tap, total: NDArray[np.float64], taps: int) -> Any:
    """Add, for every unit, the sum over pictures of its mean absolute activation at one tap."""

    def add(value: Tensor) -> None:
        if tap.positions.max() >= value.shape[tap.axis]:
            raise SketchError(
                f"the plan expects a wider {tap.module}: pass the plan of the probe itself, or none"
            )
        flat = value.detach().abs().movedim(tap.axis, 0).flatten(1)
        # Mean over everything but the axis, times the pictures: batches may differ in size.
        channel = flat.mean(dim=1).double().cpu().numpy() * len(value)
        total[:] += channel[tap.positions].mean(axis=1) / taps

    module = _module(model, tap.module)
    if tap.where == "input":
        before: Callable[..., None] = lambda _module, inputs: add(inputs[0])  # noqa: E731
        return module.register_forward_pre_hook(before)
    after: Callable[..., None] = lambda _module, _inputs, output: add(output)  # noqa: E731
    return module.register_forward_hook(after)


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise SketchError(
            f"the probe has no module {path!r}: use the plan and head it came with"
        ) from None
