"""Preparing a base for cutting: sources read, trained with checkpoints, measured, written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsprig.artifacts import (
    digest,
    pack,
    read_file,
    require_writable,
    state_digest,
    write_bytes,
)
from fedsprig.bases import BaseWeights, belongs_to_base
from fedsprig.errors import LibraryError, RunError, WeightsError
from fedsprig.masks import Budget, Mask, ScoreSet, solve
from fedsprig.models import ModelCard
from fedsprig.preparing import Preparation, PrepareConfig, mean_order
from fedsprig.pruning.journal import Checkpoint, Journal
from fedsprig.scoring import score
from fedsprig.seeds import derive_seed
from fedsprig.training import ImageSet, hold_out, require_classes
from fedsprig_server.base import Base
from fedsprig_server.base_measure import MEASURED, Source, accuracies
from fedsprig_server.library import Library
from fedsprig_server.picture_memory import drawn, joined, most_pictures

MOST_BYTES = 4 << 30
"""Of the pictures that are trained on, as float32; drawn evenly where the operator gives more."""
SAVE_EVERY = 25
"""Steps between two checkpoints; a kill loses at most as many."""

Told = Callable[[str, int, int], None]
"""Called with what is done, the steps done and all steps."""


@dataclass(frozen=True, slots=True)
class PreparedBase:
    """What came of a preparation.

    Attributes:
        file: The weights.
        base: Digest of the base that they are, as a library names it.
        original: That of the base which was prepared.
        masks: Whose scores the measured masks follow: ``"library"`` or ``"magnitude"``.
        before: Held-out accuracy right after the cut, by the share of MACs that is kept, written
            as in JSON (``"1"``, ``"0.25"``), of the original.
        after: Of the prepared base, under the same masks.
        steps: How long it was trained.
        seed: Of everything.
    """

    file: str
    base: str
    original: str
    masks: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    steps: int
    seed: int


def prepare_base(
    out: Path,
    pictures: Sequence[ImageSet],
    *,
    model: str,
    weights: str | None,
    image_size: int | None,
    library: Library | None,
    config: PrepareConfig,
    held_out: float,
    seed: int,
    told: Told = lambda stage, done, steps: None,
) -> PreparedBase:
    """Prepare a base and write its weights; the same call goes on after a kill.

    What an uninterrupted run with as many threads would have written comes out, bit for bit. A file
    that the same call has written is left, and its report given again.

    Args:
        out: Where the weights go, ``.safetensors``; checkpoints lie beside it meanwhile.
        pictures: The operator's sources; classes of two sources are never the same.
        model: A builder's name.
        weights: As :func:`fedsprig.models.build` takes them.
        image_size: Side of the pictures, where it is not the model's own.
        library: Whose scores say what units matter, if any.
        config: How to train.
        held_out: Share of each class that is measured on.
        seed: Of everything.
        told: Shown the progress.

    Raises:
        FedsprigError: Whatever cannot be, by its own named error, before anything is trained.
    """
    if out.suffix != ".safetensors":
        raise WeightsError(f"{out} cannot hold weights: give a name that ends in .safetensors")
    for given in pictures:
        require_classes(given)
    require_writable(out)

    known: dict[str, Any] = {} if library is None else {"stored_plan": library.stored_plan}
    base = Base.load(model, weights, image_size=image_size, **known)
    scores = [] if library is None else _scores(library, base)
    run = _run_digest(base, pictures, scores, config, held_out, seed)
    folder = out.with_name(f"{out.name}.unfinished")
    if out.exists():
        report = _finished(out, run, base.card.head)
        shutil.rmtree(folder, ignore_errors=True)
        return report
    journal = Journal(folder, run)
    parts = [hold_out(given, held_out, seed=seed) for given in pictures]
    measured = [Source.of(*part, base.card, most=MEASURED, seed=seed) for part in parts]
    masks = _masks(base, scores, config)
    checkpoint = journal.checkpoint("training")
    if "before" in checkpoint.state:
        before = checkpoint.state["before"]
    else:
        before = _measured(base, masks, measured, told)
    saved = checkpoint.beside(lambda: {"before": before})
    trained = _joined([rest for rest, _ in parts], base.card, seed)
    _train(base, trained, scores, config, seed, saved, told)
    after = _measured(base, masks, measured, told)
    report = PreparedBase(
        file=str(out),
        base=BaseWeights.of(model, base.module, base.card.head).digest,
        original=base.digest,
        masks="library" if scores else "magnitude",
        before=before,
        after=after,
        steps=config.steps,
        seed=seed,
    )
    state = {name: value.numpy() for name, value in base.module.state_dict().items()}
    write_bytes(out, pack(state, {"run": run, "report": json.dumps(asdict(report))}))
    shutil.rmtree(folder, ignore_errors=True)
    return report


def _train(
    base: Base,
    pictures: tuple[Tensor, Tensor],
    scores: Sequence[ScoreSet],
    config: PrepareConfig,
    seed: int,
    checkpoint: Checkpoint,
    told: Told,
) -> None:
    """Train from the checkpoint to the end, in place."""
    told("looking at the pictures", 0, config.steps)
    run = Preparation(base.module, base.plan, *pictures, config, seed=seed, scores=scores)
    first = int(checkpoint.state.get("steps", 0))
    own = base.module.state_dict()
    for name, value in checkpoint.arrays.items():
        if name.startswith("weight:"):
            own[name.removeprefix("weight:")].copy_(torch.from_numpy(value))
    run.remember(
        {
            name.removeprefix("momentum:"): torch.from_numpy(value)
            for name, value in checkpoint.arrays.items()
            if name.startswith("momentum:")
        }
    )
    for step in range(first, config.steps):
        losses = run.step(step)
        told(f"training, loss {sum(losses) / len(losses):.2f}", step + 1, config.steps)
        if (step + 1) % SAVE_EVERY == 0:
            run.check(step + 1)
            arrays = {f"weight:{name}": tensor.numpy() for name, tensor in own.items()}
            for name, tensor in run.momenta().items():
                arrays[f"momentum:{name}"] = tensor.numpy()
            checkpoint.save({"steps": step + 1}, arrays)
    run.finish()


def _scores(library: Library, base: Base) -> list[ScoreSet]:
    """What units matter to the library's tasks of that base.

    Raises:
        LibraryError: It knows none.
    """
    entries = library.entries(base.digest)
    if not entries:
        raise LibraryError(
            f"the library knows no task of this base ({base.digest[:12]}): build it with the same "
            "model and weights, or leave --library out"
        )
    return [library.scores(entry, base.plan) for entry in entries]


def _masks(base: Base, scores: Sequence[ScoreSet], config: PrepareConfig) -> dict[str, Mask]:
    """The masks that both bases are measured under, from whole to smallest, by written ratio."""
    ranked = mean_order(scores or [score("magnitude", base.module, base.plan)])
    masks = {_written(1): Mask.full(base.plan)}
    for ratio in reversed(config.ratios):
        masks[_written(ratio)] = solve(ranked, base.plan, Budget.fraction(base.plan, macs=ratio))
    return masks


def _measured(
    base: Base, masks: Mapping[str, Mask], sources: Sequence[Source], told: Told
) -> dict[str, float]:
    stage = "measuring, width by width"
    told(stage, 0, len(masks))
    return accuracies(
        base.module,
        base.plan,
        base.card,
        masks,
        sources,
        done=lambda count: told(stage, count, len(masks)),
    )


def _joined(sets: Sequence[ImageSet], card: ModelCard, seed: int) -> tuple[Tensor, Tensor]:
    """All pictures that fit, and labels that count the classes of all sets one after the other."""
    some = drawn(sets, most_pictures(card, MOST_BYTES), seed=derive_seed(seed, "pictures"))
    labels, first = [], 0
    for given in some:
        labels.append(torch.from_numpy(given.labels) + first)
        first += len(given.classes)
    return joined(some, card), torch.cat(labels)


def _run_digest(
    base: Base,
    pictures: Sequence[ImageSet],
    scores: Sequence[ScoreSet],
    config: PrepareConfig,
    held_out: float,
    seed: int,
) -> str:
    """What a preparation follows from."""
    seen = hashlib.sha256()
    for given in pictures:
        seen.update(repr((given.images.shape, given.classes)).encode())
        seen.update(np.ascontiguousarray(given.images).data)
        seen.update(np.ascontiguousarray(given.labels).data)
    told = {
        "base": base.digest,
        "plan": base.plan.digest,
        "pictures": seen.hexdigest(),
        "scores": [one.digest for one in scores],
        "config": asdict(config),
        "held_out": held_out,
        "seed": seed,
    }
    return digest(json.dumps(told, sort_keys=True).encode())


def _finished(out: Path, run: str, head: str) -> PreparedBase:
    """The report of a file that is there already.

    Raises:
        RunError: Another command wrote it, or its weights are not those that it reports.
    """
    state, metadata = read_file(out)
    if metadata.get("run") != run:
        raise RunError(f"{out} is there and of another command: remove it or give another name")
    try:
        report = PreparedBase(**{**json.loads(metadata["report"]), "file": str(out)})
        for ratio, before in report.before.items():
            _ = float(ratio), float(before), float(report.after[ratio])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise RunError(
            f"{out} has a damaged report: remove it and prepare the base again"
        ) from None
    own = {name: value for name, value in state.items() if belongs_to_base(name, head)}
    if state_digest(own) != report.base:
        raise RunError(f"{out} has damaged weights: remove it and prepare the base again")
    return report


def _written(ratio: float) -> str:
    return f"{ratio:.12g}"
