"""Several tasks beside one base model in memory: each is a mask and an adapter.

Frozen weights are the bulk of a small network, and all of them come from the base. A task keeps the
rest (adapter, normalisation, head, and the modules themselves, their frozen weights on the meta
device); switching to it fills in the frozen ones. What the mask leaves whole is the base's own
tensor, by reference, unless a codec rounds it; what is cut or rounded is made anew, or found in
memory where there was room for it.
Nothing is read, traced or attached again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from fedsprig.adapters import adapter_state, load_adapter_state
from fedsprig.artifacts import state_digest, unpack
from fedsprig.bases import belongs_to_base
from fedsprig.errors import AdapterError, LimitError, PlanError, WeightsError
from fedsprig.graph import GroupPlan, KeptIndex, kept_index, restrict
from fedsprig.graph.rebuild import rebuild
from fedsprig.masks import Mask
from fedsprig.models import ModelCard, describe
from fedsprig.spelling import lookup
from fedsprig.subnetwork import AdapterConfig, assemble, build_subnetwork
from fedsprig.updates import get_codec
from fedsprig.wire import device_pb2 as pb
from fedsprig.wire import parse

EXACT: Final = "float32"
"""The codec that changes no weight."""

CACHE_BYTES: Final = 256 << 20

_trainable = torch.inference_mode(mode=False)
"""What is made in inference mode could never be trained, nor be checked for changes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """What a task is beside the base model.

    Attributes:
        mask: What it keeps of the base.
        adapter: What it trains.
        num_classes: Width of its classifier.
        state: What it has learnt, as :func:`fedsprig.adapters.adapter_state` gives it: adapter,
            normalisation with its statistics, biases, classifier.
        codec: What the frozen weights were rounded by when it was trained: that of the packages of
            its cohort.
    """

    mask: Mask
    adapter: AdapterConfig
    num_classes: int
    state: Mapping[str, Any]
    codec: str = EXACT


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes of tensors in memory.

    Attributes:
        base: The base model.
        tasks: All that belongs to a single task.
        cuts: Frozen weights that were cut or rounded; bounded, and dropped where room is needed.
    """

    base: int
    tasks: int
    cuts: int


class _Piece(NamedTuple):
    """A frozen weight, and the version that torch counted when it was made."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Piece:
        return cls(tensor, tensor._version)

    @property
    def is_untouched(self) -> bool:
        """Whether nobody has written to it since, through any network that shares it."""
        return self.tensor._version == self.version


@dataclass(frozen=True, slots=True)
class _Kept:
    """A task as it is kept.

    Attributes:
        module: Its network; the weights named in ``shared`` are shapes only.
        shared: Names of frozen weights that are the base's, cut and rounded.
        index: What the mask leaves of them.
        codec: What they are rounded by.
        cut: Tasks of equal ``cut`` share their pieces.
    """

    module: nn.Module
    shared: tuple[str, ...]
    index: KeptIndex
    codec: str
    cut: tuple[str, str]


class TaskSwitch:
    """A base model and tasks by name; not safe to use from several threads at a time.

    Attributes:
        plan: The base model's groups; they name its builder and the size of its pictures.
    """

    @_trainable
    def __init__(
        self, plan: GroupPlan, base: Mapping[str, Any], *, cache_bytes: int = CACHE_BYTES
    ) -> None:
        """Take a base model; it is not copied, and must not be written to afterwards.

        Args:
            plan: Its groups.
            base: Its parameters and buffers at full size, arrays or tensors on the CPU, as in
                :class:`fedsprig.bases.BaseWeights`. A classifier and counters are left out.
            cache_bytes: Room for frozen weights that were cut or rounded. Those of the tasks that
                were used longest ago are dropped first, and made anew when they are wanted.

        Raises:
            WeightsError: A tensor is missing or of another shape than the plan says.
            LimitError: ``cache_bytes`` is no integer from 0 up.
        """
        if type(cache_bytes) is not int or cache_bytes < 0:
            raise LimitError(f"cache_bytes is {cache_bytes!r:.20}: give bytes, 0 or more")
        self.plan = plan
        self._cache_bytes = cache_bytes
        self._tasks: dict[str, _Kept] = {}
        self._pieces: OrderedDict[tuple[str, str], dict[str, _Piece]] = OrderedDict()
        self._base: dict[str, _Piece] = {}
        for name, shape in plan.shapes.items():
            if not belongs_to_base(name, plan.head):
                continue
            tensor = torch.as_tensor(base[name]).detach() if name in base else None
            if tensor is None or tuple(tensor.shape) != shape:
                found = "absent" if tensor is None else list(tensor.shape)
                raise WeightsError(
                    f"the base's {name} is {found}, the plan of {plan.model} needs {list(shape)}: "
                    "give the weights that the plan was traced for"
                )
            self._base[name] = _Piece.of(tensor.float() if tensor.is_floating_point() else tensor)

    @cached_property
    def digest(self) -> str:
        """Digest of the base's weights, as packages name it."""
        return state_digest({name: piece.tensor.numpy() for name, piece in self._base.items()})

    @property
    def card(self) -> ModelCard:
        """What pictures must look like."""
        return replace(describe(self.plan.model), input_size=self.plan.input_shape[-1])

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, in the order of their names."""
        return tuple(sorted(self._tasks))

    @_trainable
    def add(self, name: str, task: Task) -> None:
        """Take a task; its state is copied. On an error everything is as it was.

        Raises:
            AdapterError: The name is taken, or the state does not fit mask and adapter.
            PlanError: The mask does not fit the plan.
            UnknownNameError: There is no such adapter or codec.
        """
        self._require_free(name)
        index = kept_index(self.plan, task.mask)
        pieces = {n: self._cut(n, index, task.codec) for n in self._base}
        module = assemble(
            self.plan.with_num_classes(task.num_classes),
            task.mask,
            {n: piece.tensor for n, piece in pieces.items()},
            num_classes=task.num_classes,
            adapter=task.adapter,
        )
        self._take(name, module, task.state, index, task.codec, task.mask, pieces)

    @_trainable
    def add_package(self, name: str, package: bytes, state: Mapping[str, Any]) -> None:
        """Take the task of a package (:mod:`fedsprig.subnetwork`), with what it has learnt since.

        Frozen weights that the package brings and that are not this base's stay the task's own.

        Raises:
            AdapterError: The name is taken, the package has no adapter, or the state does not fit.
            PlanError: The package is of another plan.
            FedsprigError: A package that is malformed or relies on another base.
        """
        self._require_free(name)
        message = parse(pb.SubNetwork, package)
        if message.plan_digest != self.plan.digest:
            raise PlanError(f"the package of task {name!r:.80} is of another plan than this base")
        network = build_subnetwork(
            package,
            plan_of=lambda _: self.plan.to_bytes(),
            base_of=lambda wanted: (
                {n: piece.tensor.numpy() for n, piece in self._base.items()}
                if wanted == self.digest
                else None
            ),
        )
        codec = message.codec or unpack(message.weights)[1]["codec"]
        pieces = {n: self._cut(n, network.index, codec) for n in self._base}
        self._take(name, network.module, state, network.index, codec, network.mask, pieces)

    def update(self, name: str, state: Mapping[str, Any]) -> None:
        """Give a task what it has learnt since, copied; networks made before stay as they are.

        Raises:
            UnknownNameError: There is no such task.
            AdapterError: The state does not fit; the old one stays.
        """
        load_adapter_state(lookup(self._tasks, name, "task").module, state)

    def state(self, name: str) -> dict[str, Tensor]:
        """What a task has learnt, copied; see :attr:`Task.state`.

        Raises:
            UnknownNameError: There is no such task.
        """
        return adapter_state(lookup(self._tasks, name, "task").module)

    @_trainable
    def switch(self, name: str) -> nn.Module:
        """The small network of a task with its adapter, in evaluation mode.

        Every call gives a network of its own: training it changes neither the task (``update`` it
        with the ``adapter_state`` of the network) nor any other network. Only frozen weights are
        shared, with the base and with the networks of other tasks, so that they must stay frozen.

        Raises:
            UnknownNameError: There is no such task.
            WeightsError: The base was written to.
        """
        task = lookup(self._tasks, name, "task")
        found = self._pieces.pop(task.cut, {})
        for piece in task.shared:
            if piece not in found or not found[piece].is_untouched:
                found[piece] = self._cut(piece, task.index, task.codec)
        self._pieces[task.cut] = found
        module = rebuild(task.module, {n: found[n].tensor for n in task.shared})
        self._shrink()
        return module

    def remove(self, name: str) -> None:
        """Forget a task; networks made of it stay as they are.

        Raises:
            UnknownNameError: There is no such task.
        """
        task = lookup(self._tasks, name, "task")
        del self._tasks[name]
        if all(other.cut != task.cut for other in self._tasks.values()):
            self._pieces.pop(task.cut, None)

    @property
    def held(self) -> Held:
        """What is in memory now, networks that were given out aside."""
        return Held(
            base=sum(piece.tensor.nbytes for piece in self._base.values()),
            tasks=sum(_own_bytes(task) for task in self._tasks.values()),
            cuts=self._cut_bytes(),
        )

    def _require_free(self, name: str) -> None:
        if name in self._tasks:
            raise AdapterError(f"task {name!r:.80} is here already: update() or remove() it")

    def _take(
        self,
        name: str,
        module: nn.Module,
        state: Mapping[str, Any],
        index: KeptIndex,
        codec: str,
        mask: Mask,
        pieces: Mapping[str, _Piece],
    ) -> None:
        """Keep a task's network without the weights that are the base's."""
        _own_(module)
        load_adapter_state(module, state)
        shared = []
        for path, part in module.named_modules():
            for own, parameter in part._parameters.items():
                full = f"{path}.{own}" if path else own
                if parameter is None or parameter.requires_grad or full not in pieces:
                    continue
                if torch.equal(parameter, pieces[full].tensor):
                    empty = torch.empty_like(parameter, device="meta")
                    part._parameters[own] = nn.Parameter(empty, requires_grad=False)
                    shared.append(full)
        cut = (mask.digest, codec)
        self._tasks[name] = _Kept(module, tuple(shared), index, codec, cut)
        found = self._pieces.pop(cut, {})
        self._pieces[cut] = {n: pieces[n] for n in shared} | found
        self._shrink()

    def _cut(self, name: str, index: KeptIndex, codec: str) -> _Piece:
        """A weight of the base as the mask leaves it, rounded."""
        base = self._base[name]
        if not base.is_untouched:
            raise WeightsError(
                f"the base's {name} was written to by someone who shares it: load the base again, "
                "and copy a network (copy.deepcopy) before changing what is frozen in it"
            )
        cut = restrict({name: base.tensor}, index)[name]
        if cut is not base.tensor:
            return _Piece.of(_rounded(cut, codec))
        if codec == EXACT or not cut.is_floating_point():
            return base
        for (_, other), found in self._pieces.items():  # what another mask leaves whole, too
            piece = found.get(name) if other == codec else None
            if piece and piece.is_untouched and piece.tensor.shape == cut.shape:
                return piece
        return _Piece.of(_rounded(cut, codec))

    def _shrink(self) -> None:
        """Drop the pieces that were used longest ago, until the others fit."""
        while self._cut_bytes() > self._cache_bytes:
            self._pieces.popitem(last=False)

    def _cut_bytes(self) -> int:
        pieces = {id(p): p.tensor for found in self._pieces.values() for p in found.values()}
        whole = {id(piece) for piece in self._base.values()}
        return sum(tensor.nbytes for number, tensor in pieces.items() if number not in whole)


def _rounded(tensor: Tensor, codec: str) -> Tensor:
    """What arrives of a weight that travels by ``codec``."""
    if codec == EXACT or not tensor.is_floating_point():
        return tensor
    how = get_codec(codec)
    return torch.from_numpy(how.decode(how.encode(tensor.numpy()), tuple(tensor.shape)))


def _own_(module: nn.Module) -> None:
    """Give everything but frozen parameters memory of its own; what is one tensor stays one."""
    made: dict[int, Any] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.requires_grad:
                if id(parameter) not in made:
                    made[id(parameter)] = parameter, nn.Parameter(parameter.detach().clone())
                part._parameters[name] = made[id(parameter)][1]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.clone()


def _own_bytes(task: _Kept) -> int:
    tensors = (*task.module.parameters(), *task.module.buffers())
    kept = sum(axis.nbytes for axes in task.index.values() for axis in axes.values())
    return kept + sum(tensor.nbytes for tensor in tensors if not tensor.is_meta)
