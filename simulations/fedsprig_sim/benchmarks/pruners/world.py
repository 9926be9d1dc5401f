"""A network, its task's pictures, and how long to train: what the cases of a study share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from fedsprig.artifacts import state_digest, write_bytes
from fedsprig.artifacts.container import pack, unpack
from fedsprig.artifacts.files import read_bytes
from fedsprig.errors import DataError, TrainingError
from fedsprig.graph import trace_groups
from fedsprig.graph.plan import GroupPlan
from fedsprig.models import ModelCard, build, describe
from fedsprig.pruning import Job, Labelled, Policy, Target
from fedsprig.pruning.latency import MeasuredLatency
from fedsprig.seeds import derive_seed
from fedsprig.training import (
    ImageSet,
    TrainConfig,
    fit,
    hold_out,
    read,
    recalibrate,
    require_classes,
    to_tensor,
)
from fedsprig.training.readers.embedded import EMBEDDED

HeldOut = Literal["train", "test"]
_SPLIT_SEED = 0
_STATISTICS_PICTURES = 1024


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a person chooses.

    Attributes:
        data: name of an embedded set, or path of an ``.npz`` with splits ``train`` and ``test``.
        model: base model by name.
        weights: its weights; without any they are random.
        pictures: training pictures, about.
        validation_pictures: what selects, about.
        test_pictures: what is reported, about.
        held_out: the split that validation pictures are taken from. ``"test"`` is for weights that
            were trained on all training pictures: the two parts of the test split do not overlap.
        device: where networks train, ``"cuda"`` say; pictures stay in main memory.
        whole_training: of the whole network before it is pruned, once for every seed; ``None``
            takes it as it comes.
        training: what every method gets, in pictures seen, from the whole network to its result.
    """

    data: str = "digits"
    model: str = "sprig20"
    weights: str | None = "shipped"
    pictures: int = 20_000
    validation_pictures: int = 2_000
    test_pictures: int = 4_000
    held_out: HeldOut = "train"
    device: str = "cpu"
    whole_training: TrainConfig | None = None
    training: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=4, batch_size=64, learning_rate=0.02)
    )

    def __post_init__(self) -> None:
        if self.held_out not in get_args(HeldOut):
            raise DataError(f"held_out is {self.held_out!r:.40}: use train or test")


def read_training(
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    augment: str,
    milestones: str = "",
    bf16: bool = False,
) -> TrainConfig:
    """A training as the command line gives it.

    Raises:
        TrainingError: a value out of its range, or milestones that are no epochs.
    """
    values: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "augment": augment,
        "bf16": bf16,
    }
    if not milestones:
        return TrainConfig(**values)
    try:
        falls = tuple(int(part) for part in milestones.split(","))
    except ValueError:
        raise TrainingError(f"milestones are {milestones!r:.40}: write epochs, as 91,136") from None
    return TrainConfig(**values, schedule="constant", milestones=falls)


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """Read and standardised.

    Attributes:
        options: what was chosen.
        folder: where whole networks lie that were trained.
        network: the whole one, as it comes.
        plan: its groups, with the head of the task.
        train: what weights are trained on.
        validation: what selects.
        test: what is reported, and nothing else looks at.
    """

    options: Options
    folder: Path
    network: nn.Module
    plan: GroupPlan
    train: Labelled
    validation: Labelled
    test: Labelled

    @classmethod
    def of(cls, options: Options, folder: Path) -> World:
        """Read the data and build the network; trained whole networks lie in ``folder``.

        Raises:
            FedsprigError: data, model or weights that cannot be used.
        """
        card = describe(options.model)
        kind = "embedded" if options.data in EMBEDDED else "npz"
        train, test = (read(kind, options.data, split=split) for split in ("train", "test"))
        require_classes(train)
        wanted = options.validation_pictures
        if options.held_out == "test":
            test, validation = hold_out(test, _share(wanted, test, 2), seed=_SPLIT_SEED)
        else:
            train, validation = hold_out(train, _share(wanted, train, 5), seed=_SPLIT_SEED)
        side = card.input_size
        network = build(options.model, num_classes=len(train.classes), weights=options.weights)
        plan = trace_groups(network, torch.zeros(1, 3, side, side), name=options.model)
        return cls(
            options,
            folder,
            network.to(options.device),
            plan,
            _labelled(at_most(train, options.pictures), card),
            _labelled(validation, card),
            _labelled(at_most(test, options.test_pictures), card),
        )

    def job(self, policy: Policy, target: str, seed: int) -> Job:
        """A job on the whole network of a seed.

        Args:
            policy: one of the three.
            target: as an operator writes it.
            seed: of the job and of the whole network's training.
        """
        network = self._whole(seed)
        found = Target.parse(policy, target, self.plan)
        return Job(
            model=network,
            plan=self.plan,
            train=self.train,
            validation=self.validation,
            target=found,
            seed=seed,
            latency_ms=MeasuredLatency(network, self.plan) if found.unit == "ms" else None,
        )

    def _whole(self, seed: int) -> nn.Module:
        config = self.options.whole_training
        if config is None:
            return self.network
        state = {n: v.cpu().numpy() for n, v in self.network.state_dict().items()}
        images = {"images": self.train.images.numpy(), "labels": self.train.labels.numpy()}
        key = state_digest(state | images)[:16] + f"-{derive_seed(seed, repr(config)):016x}"
        path = self.folder / f"whole-{key}.safetensors"
        network = build(
            self.options.model,
            num_classes=self.plan.shapes[f"{self.plan.head}.weight"][0],
            weights=self.options.weights,
            device=self.options.device,
        )
        if not path.exists():
            network.requires_grad_(True)
            fit(
                network,
                self.train.images,
                self.train.labels,
                config,
                seed=derive_seed(seed, "whole network"),
                head=self.plan.head,
            )
            recalibrate(network, self.train.images[:_STATISTICS_PICTURES])
            write_bytes(path, pack({n: v.cpu().numpy() for n, v in network.state_dict().items()}))
        arrays, _ = unpack(read_bytes(path, max_bytes=8 << 30))
        network.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()})
        return network.requires_grad_(True).eval()


def scaled(config: TrainConfig, factor: float) -> TrainConfig:
    """The same training, so many times as long."""
    if config.epochs is not None:
        return replace(config, epochs=max(1, round(factor * config.epochs)))
    return replace(config, steps=max(1, round(factor * (config.steps or 0))))


def at_most(images: ImageSet, count: int) -> ImageSet:
    """About ``count`` pictures, evenly drawn from the classes; all where there are fewer."""
    if count >= len(images):
        return images
    return hold_out(images, count / len(images), seed=_SPLIT_SEED)[1]


def _share(count: int, images: ImageSet, part: int) -> float:
    return min(count, len(images) // part) / len(images)


def _labelled(pictures: ImageSet, card: ModelCard) -> Labelled:
    images = to_tensor(pictures.images, card).contiguous(memory_format=torch.channels_last)
    return Labelled(images, torch.from_numpy(pictures.labels))
