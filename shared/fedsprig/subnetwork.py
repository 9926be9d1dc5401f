"""The sub-network as it travels: packed by the server, built on a device without the base model.

A package holds the base model's name, the mask as bits, the group plan, the kept weights quantised,
and the adapter's settings; plan and weights are left out where the device has them
(:mod:`fedsprig.bases`). Building it allocates the small network only: the base exists as shapes on
the meta device. Nothing in a package is code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedsprig.adapters import Unadapted, attach, with_ranks
from fedsprig.bases import belongs_to_base, weights_of
from fedsprig.errors import LimitError, MessageError, MissingPartError
from fedsprig.graph import GroupPlan, KeptIndex, kept_index, load_small, materialize, restrict
from fedsprig.masks import Mask
from fedsprig.models import ModelCard, build, describe
from fedsprig.models.head import is_of_head
from fedsprig.updates import encode_state
from fedsprig.wire import device_pb2 as pb
from fedsprig.wire import parse

Array = NDArray[Any]
MAX_CLASSES = 100_000
MAX_RANK = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What a task trains.

    Attributes:
        kind: A name of ``fedsprig.adapters.ADAPTERS``.
        rank: Rank of the low-rank adapters.
        seed: A is drawn from it on server and device, so that it never travels unless it is
            trained.
        train_a: Whether A trains too.
        rank_rule: A name of ``fedsprig.adapters.RANK_RULES``.
        unadapted: ``"refuse"`` or ``"freeze"``: see :func:`fedsprig.adapters.attach`.
        local_statistics: Whether every device measures the normalisation statistics for itself:
            then they are no part of what travels.
    """

    kind: str = "splora"
    rank: int = 8
    seed: int = 0
    train_a: bool = False
    local_statistics: bool = False
    rank_rule: str = "layer"
    unadapted: Unadapted = "refuse"

    def index(self, plan: GroupPlan, mask: Mask) -> KeptIndex:
        """What a mask leaves of the base's tensors and of the adapters beside them."""
        return with_ranks(kept_index(plan, mask), plan.shapes, self.rank, self.rank_rule)


@dataclass(frozen=True, slots=True)
class SubNetwork:
    """A built sub-network and what it was built from; the card's picture size is the plan's."""

    module: nn.Module
    card: ModelCard
    plan: GroupPlan
    mask: Mask
    index: KeptIndex
    adapter: AdapterConfig | None


def pack_subnetwork(
    plan: GroupPlan,
    mask: Mask,
    state: Mapping[str, Array],
    *,
    num_classes: int,
    adapter: AdapterConfig | None,
    codec: str = "float16",
    with_plan: bool = True,
    own: Mapping[str, Array] | None = None,
) -> bytes:
    """Pack the sub-network that ``mask`` cuts from the base model with weights ``state``.

    Args:
        plan: The base model's plan; ``plan.model`` names the builder.
        mask: What to keep.
        state: The base's parameters and buffers, full size. Its classifier is left out: every task
            has its own.
        num_classes: Classes of the task.
        adapter: What to attach after building; ``None`` for a network that only looks (the probe).
        codec: How the weights are quantised.
        with_plan: Leave the plan out where the device is known to hold it.
        own: What the cut network has of its own and takes the place of the base's: statistics that
            were measured after the cut, weights that were healed.
    """
    index = kept_index(plan, mask)
    kept = {name: value for name, value in state.items() if belongs_to_base(name, plan.head)}
    package = pb.SubNetwork(
        model=plan.model,
        num_classes=num_classes,
        plan_digest=plan.digest,
        plan=plan.to_bytes() if with_plan else b"",
        mask=mask.to_bytes(),
        weights=encode_state({**restrict(kept, index), **(own or {})}, codec),
    )
    if adapter is not None:
        package.adapter.CopyFrom(
            pb.AdapterSettings(
                kind=adapter.kind,
                rank=adapter.rank,
                seed=adapter.seed,
                train_a=adapter.train_a,
                local_statistics=adapter.local_statistics,
                rank_rule=adapter.rank_rule,
                unadapted=adapter.unadapted,
            )
        )
    return bytes(package.SerializeToString(deterministic=True))


def build_subnetwork(
    data: bytes,
    *,
    plan_of: Callable[[str], bytes | None],
    keep_plan: Callable[[bytes], None] = lambda plan: None,
    base_of: Callable[[str], Mapping[str, Array] | None] = lambda base_digest: None,
) -> SubNetwork:
    """Build the network of a package, in evaluation mode, its classifier all zero.

    Args:
        data: Bytes of :func:`pack_subnetwork`, possibly from outside.
        plan_of: Finds the bytes of a plan by digest where the package leaves it out.
        keep_plan: Given the bytes of a plan that the package brings, once they are checked.
        base_of: Finds the base model's weights by digest where the package leaves them out.

    Raises:
        MissingPartError: What the package leaves out is not here.
        MessageError: No package, or one whose plan is another than it says.
        FedsprigError: A part that is malformed, by its own named error.
    """
    package = parse(pb.SubNetwork, data)
    if not 1 <= package.num_classes <= MAX_CLASSES:
        raise LimitError(f"{package.num_classes} classes: a task has 1 to {MAX_CLASSES:,}")
    plan_bytes = package.plan or plan_of(package.plan_digest)
    if plan_bytes is None:
        raise MissingPartError(
            f"the group plan {package.plan_digest[:12]} is not here: ask for a package "
            "with its plan"
        )
    plan = GroupPlan.from_bytes(plan_bytes)
    if plan.digest != package.plan_digest or plan.model != package.model:
        raise MessageError("the package's plan is another than it names: ask for it again")
    if package.plan:
        keep_plan(package.plan)
    size = plan.input_shape[-1]
    card = replace(describe(package.model), input_size=size)
    mask = Mask.from_bytes(package.mask, plan)
    index = kept_index(plan, mask)
    weights = weights_of(package, plan, index, base_of)
    adapter = None
    if package.HasField("adapter"):
        settings = package.adapter
        if not 1 <= settings.rank <= MAX_RANK:
            raise LimitError(f"rank {settings.rank}: use 1 to {MAX_RANK}")
        adapter = AdapterConfig(
            kind=settings.kind,
            rank=settings.rank,
            seed=settings.seed,
            train_a=settings.train_a,
            local_statistics=settings.local_statistics,
            rank_rule=settings.rank_rule or "layer",
            unadapted=_unadapted(settings.unadapted),
        )
    plan = plan.with_num_classes(package.num_classes)
    module = assemble(plan, mask, weights, num_classes=package.num_classes, adapter=adapter)
    return SubNetwork(module, card, plan, mask, index, adapter)


def _unadapted(name: str) -> Unadapted:
    if name not in ("", "refuse", "freeze"):
        raise MessageError(f"unadapted is {name!r:.20}: use 'refuse' or 'freeze'")
    return "freeze" if name == "freeze" else "refuse"


def assemble(
    plan: GroupPlan,
    mask: Mask,
    weights: Mapping[str, Any],
    *,
    num_classes: int,
    adapter: AdapterConfig | None,
) -> nn.Module:
    """The small network of weights that are cut already, in evaluation mode.

    Args:
        plan: The base model's, with a classifier for ``num_classes``.
        mask: What cut the weights.
        num_classes: The task's.
        weights: Arrays or tensors by name, without classifier (which starts as zeros) and counters;
            the network takes tensors over without a copy.
        adapter: What to attach, if anything.

    Raises:
        FedsprigError: Weights that do not fit, or an adapter that cannot be attached.
    """
    size = plan.input_shape[-1]
    full = build(plan.model, num_classes=num_classes, device="meta", image_size=size)
    module = materialize(full, plan, mask)
    zeros: dict[str, Any] = {}
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            zeros[name] = np.zeros((), np.int64)
        elif is_of_head(name, plan.head):
            zeros[name] = np.zeros(tuple(tensor.shape), np.float32)
    module = load_small(module, {**weights, **zeros}).eval()
    if adapter is None:
        return module
    return attach_configured(module, adapter, plan, kept_index(plan, mask))


def attach_configured(
    module: nn.Module, adapter: AdapterConfig, plan: GroupPlan, index: KeptIndex
) -> nn.Module:
    """Attach what ``adapter`` says to a cut (or, with an empty index, full) network, in place."""
    return attach(
        module,
        kind=adapter.kind,
        rank=adapter.rank,
        rank_rule=adapter.rank_rule,
        unadapted=adapter.unadapted,
        seed=adapter.seed,
        train_a=adapter.train_a,
        head=plan.head,
        kept=index,
        shapes=plan.shapes,
    )
