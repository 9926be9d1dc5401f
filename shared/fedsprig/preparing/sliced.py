"""Small networks whose weights are slices of a base model's parameters.

A base under a soft mask (:mod:`fedsprig.pruning.gates`) costs as much as the whole base. A sliced
network computes only what its mask keeps, so a mask of a quarter of the multiply-accumulates trains
in about a quarter of the time; and as its weights are taken by ``index_select``, gradients reach
the base's own parameters. Many masks can so be trained on one set of weights, as slimmable networks
do (Yu et al. 2019, "Slimmable Neural Networks", arXiv 1812.08928).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from fedsprig.graph import GroupPlan, KeptIndex, kept_axes, kept_index, materialize, restrict
from fedsprig.masks import Mask
from fedsprig.training.head_input import HeadInput
from fedsprig.training.strides import subsampled_strides


def skeleton_of(base: nn.Module) -> nn.Module:
    """The base without its numbers (on the meta device), for cutting many masks of it."""
    return copy.deepcopy(base).to("meta")


class SlicedNetwork:
    """The network that a mask cuts from a base, without weights of its own.

    What it computes, and the gradients of the base's parameters, are those of
    :func:`fedsprig.graph.materialize`. It is in evaluation mode, but for batch normalisation where
    that is asked to use the statistics of the batch. The base's running statistics are never
    changed: a small network's own would be of no use to the next one.

    Args:
        base: At full width; its parameters are read at every call.
        plan: Its groups.
        mask: What to keep.
        batch_statistics: Normalise by the batch, as in training; else by the base's statistics.
        skeleton: From :func:`skeleton_of`, where many masks of one base are cut.

    Raises:
        PlanError: A base or a mask that does not fit the plan.
    """

    def __init__(
        self,
        base: nn.Module,
        plan: GroupPlan,
        mask: Mask,
        *,
        batch_statistics: bool = False,
        skeleton: nn.Module | None = None,
    ) -> None:
        self._index = kept_index(plan, mask)
        self._small = materialize(skeleton or skeleton_of(base), plan, mask).eval()
        self._base, self._head = base, plan.head
        if batch_statistics:
            batch_normalised(self._small)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits ``[n, classes]`` of pictures ``[n, c, h, w]``."""
        tensors = restrict(dict(self._base.named_parameters()), self._index)
        for name, buffer in restrict(dict(self._base.named_buffers()), self._index).items():
            tensors[name] = buffer.clone()
        with subsampled_strides(self._small):
            logits: Tensor = functional_call(self._small, tensors, (images,))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """What the head sees of pictures: ``[n, kept features]``; gradients flow."""
        with HeadInput(self._small, self._head) as seen:
            self(images)
        return seen.take()

    @property
    def kept_features(self) -> Tensor | None:
        """Which of the base's features it has: int64, sorted; ``None`` for all."""
        return kept_features(self._head, self._index)


def kept_features(head: str, index: KeptIndex) -> Tensor | None:
    """Which of the base's features a cut network has: int64, sorted; ``None`` for all.

    Args:
        head: Module path of the classifier.
        index: From :func:`fedsprig.graph.kept_index`.
    """
    kept = kept_axes(f"{head}.weight", index).get(1)
    return None if kept is None else torch.from_numpy(kept)


def batch_normalised(network: nn.Module) -> None:
    """Evaluation mode, but batch normalisation by the batch's own statistics, in place.

    Dropout stays off: what is learnt is what the base says without it.
    """
    network.eval()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.train()
