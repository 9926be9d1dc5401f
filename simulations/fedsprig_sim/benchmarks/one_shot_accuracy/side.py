"""A base model with its library: built once, from then on read from disk."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsprig.graph import shrink_plan
from fedsprig.masks import Mask, ScoreSet
from fedsprig.preparing import HealConfig, base_features, heal
from fedsprig.scoring import score
from fedsprig.scoring.taylor import score_taylor_with_error
from fedsprig.seeds import derive_seed
from fedsprig.subnetwork import SubNetwork, build_subnetwork
from fedsprig.tasks import Evidence, TaskSketch, observe
from fedsprig.tasks.similarity import SIMILARITIES, SketchIndex
from fedsprig.training import labelled_batches, to_tensor
from fedsprig_server.base import Base
from fedsprig_server.library import Entry, Library
from fedsprig_server.library_build import BuildConfig, base_record, build_library, started
from fedsprig_sim.benchmarks.one_shot_accuracy.tasks import NewTask, Tasks

SCORING_BATCH: Final = 32
HEALING: Final = HealConfig(steps=100, augment="none")
"""A fraction of what a server would spend: it is done for every task and arm."""
_LESSON: Final = 4096
"""Pictures that networks are healed on."""


@dataclass(frozen=True, eq=False)
class Side:
    """A base and what its library knows.

    Attributes:
        base: The model.
        probe: What describes tasks.
        probe_digest: Its name.
        index: Sketches of all entries.
        entries: In the order of the index.
        scores: Of every entry.
        pictures: The operator's own, evenly from the library's tasks.
    """

    base: Base
    probe: SubNetwork
    probe_digest: str
    index: SketchIndex
    entries: tuple[Entry, ...]
    scores: tuple[ScoreSet, ...]
    pictures: tuple[NDArray[np.uint8], ...]

    @classmethod
    def load(
        cls,
        folder: Path,
        tasks: Tasks,
        *,
        model: str,
        weights: str | None,
        image_size: int | None,
        build: BuildConfig,
        done: Callable[[str], None],
    ) -> Side:
        """Load the base and its library; tasks that are missing there are scored first.

        Args:
            folder: Where libraries lie, under a digest of base, pictures and settings.
            tasks: Of the library.
            model: Builder's name.
            weights: As :func:`fedsprig.models.build` takes them.
            image_size: Side of the pictures, or the model's own.
            build: How entries are made.
            done: Told of every task.
        """
        base = Base.load(model, weights, image_size=image_size)
        key = hashlib.sha256(f"{base.digest} {build} {base.card.input_size}".encode())
        for task in tasks.library:
            key.update(task.name.encode())
            key.update(task.pictures.images.tobytes())
            key.update(task.pictures.labels.tobytes())
        with Library(folder / f"library-{key.hexdigest()[:16]}") as library:
            build_library(library, base, tasks.library, build, done=done)
            record = base_record(library, base, tasks.library, build.seed)
            probe = build_subnetwork(library.blobs.get(record.probe), plan_of=lambda _: None)
            entries = tuple(library.entries(base.digest))
            scores = tuple(library.scores(entry, base.plan) for entry in entries)
            index = library.index(base.digest)
            return cls(base, probe, record.probe, index, entries, scores, _operators(tasks))

    def prepared(self, weights: str) -> Side:
        """The same library on a base that was prepared from this one.

        As `fedsprig library rebase` takes it along: sketches and scores stay.

        Raises:
            PlanError: Weights of another network.
        """
        plan, card = self.base.plan, self.base.card
        base = Base.load(
            card.name,
            weights,
            image_size=card.input_size,
            stored_plan=lambda _: plan.to_bytes(),
        )
        return replace(self, base=base)

    def heal(self, network: nn.Module, mask: Mask, *, seed: int) -> None:
        """Heal a cut network as the server would, on the operator's pictures, in place."""
        images, targets = self._lesson
        base, plan = self.base.module, self.base.plan
        heal(network, mask, base, plan, images, HEALING, seed=seed, targets=targets)

    @cached_property
    def _lesson(self) -> tuple[Tensor, Tensor]:
        images = torch.cat([to_tensor(part, self.base.card) for part in self.pictures])
        return images, base_features(self.base.module, self.base.plan, images)

    def tensors(self, task: NewTask) -> tuple[Tensor, Tensor]:
        """The device's pictures and labels as the base takes them."""
        return to_tensor(task.train.images, self.base.card), torch.from_numpy(task.train.labels)


@dataclass(eq=False)
class Known:
    """What is known of one task on one base; each part is found when it is first asked for."""

    side: Side
    task: NewTask
    _own: dict[str, tuple[ScoreSet, ScoreSet | None]] = field(default_factory=dict)

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """The device's pictures and labels."""
        return self.side.tensors(self.task)

    @cached_property
    def _observed(self) -> Evidence:
        """As a device describes the task, with the features that it keeps."""
        side, (images, labels) = self.side, self.tensors
        return observe(
            side.probe.module,
            shrink_plan(side.probe.plan, side.probe.mask),
            side.base.card.head,
            images,
            labels,
            self.task.train.classes,
            probe=side.probe_digest,
        )

    @property
    def sketch(self) -> TaskSketch:
        """What the device sends."""
        return self._observed.sketch

    def evidence(self, similarity: str) -> Evidence:
        """The sketch and its features, and a first batch's scores where a similarity needs them."""
        if "scores" not in SIMILARITIES[similarity].needs:
            return self._observed
        return replace(self._observed, scores=self.own("taylor", pictures=SCORING_BATCH)[0])

    @cached_property
    def started(self) -> nn.Module:
        """The whole base on the task's pictures: recalibrated, with a head from class means."""
        images, labels = self.tensors
        return started(self.side.base, images, labels, len(self.task.train.classes))

    def own(self, scorer: str, *, pictures: int | None = None) -> tuple[ScoreSet, ScoreSet | None]:
        """Scores from the device's own pictures, on the whole base, and their standard errors.

        Args:
            scorer: Of ``fedsprig.scoring``.
            pictures: The first so many; all by default.
        """
        key = f"{scorer} {pictures}"
        if key not in self._own:
            images, labels = (values[:pictures] for values in self.tensors)
            batches = labelled_batches(images, labels, SCORING_BATCH)
            plan = self.side.base.plan
            if scorer == "taylor":
                self._own[key] = score_taylor_with_error(self.started, plan, batches)
            else:
                self._own[key] = score(scorer, self.started, plan, batches), None
        return self._own[key]

    def shown(self, entries: int | None = None) -> NDArray[np.int64]:
        """Positions of the library's entries that may help.

        Args:
            entries: So many of them, drawn for the task; those of a smaller number are among those
                of a larger one.
        """
        names = [entry.name for entry in self.side.entries]
        hidden = self.task.hidden
        found = np.array([i for i, name in enumerate(names) if name not in hidden], np.int64)
        if entries is None:
            return found
        rng = np.random.default_rng(derive_seed(self.task.seed, "library", self.task.name))
        return np.sort(rng.permutation(found)[:entries])

    def whole(self) -> nn.Module:
        """A copy of the whole base, with a head from class means."""
        return copy.deepcopy(self.started)


def _operators(tasks: Tasks) -> tuple[NDArray[np.uint8], ...]:
    """Pictures of all the library's tasks, as many of each."""
    each = max(1, _LESSON // len(tasks.library))
    parts = []
    for task in tasks.library:
        rng = np.random.default_rng(derive_seed(0, "healing", task.name))
        parts.append(task.pictures.images[rng.permutation(len(task.pictures))[:each]])
    return tuple(parts)
