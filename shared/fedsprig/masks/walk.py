"""The cost of a network as it runs: one forward pass on shapes alone, watched operator by operator.

The network is copied to PyTorch's meta device (shapes without data, so no memory and hardly any
time) and called once under a dispatch mode that sees every operator. What is counted:

* **MACs**: convolutions and matrix products (linear layers, attention). One multiply-accumulate is
  one MAC; normalisation, activations, additions and pooling are not counted.
* **Peak bytes**: the largest sum of the storages alive at once, at their real dtypes. A storage
  lives from the operator that makes it until Python and the running operators drop it, exactly as
  in eager execution: views and in-place operators add nothing, both operands of a residual addition
  stay, an operator's inputs and outputs coexist. The input counts, during the whole pass (its
  caller holds it). Parameters and buffers do not count. Workspace inside a kernel (im2col, Winograd
  tiles) is the kernel's own affair and not visible here; fused attention is walked in its unfused
  form, with the product of queries and keys in memory.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedsprig.errors import PlanError
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks.costs import Cost
from fedsprig.masks.mask import Mask

_aten = torch.ops.aten


def cost(model: nn.Module, example_input: Tensor) -> Cost:
    """Parameters, MACs and the eager peak of activations of one forward pass in evaluation mode.

    Args:
        model: any network; it is neither run nor changed, and may itself be on the meta device.
        example_input: shape and dtype of the input, with its batch axis; MACs and peak are for that
            batch.

    Raises:
        PlanError: the forward pass needs values, not shapes alone, or does not take this input.
    """
    skeleton = _on_meta(model)
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        **_walk(skeleton, example_input),
    )


def peak_of(model: nn.Module, plan: GroupPlan, example_input: Tensor) -> Callable[[Mask], int]:
    """A measurement of peak activation bytes for :func:`fedsprig.masks.solve`.

    Each call cuts the network's shapes and walks them: deterministic, and exact for the sub-network
    itself.

    Args:
        model: the base model; only its shapes are used.
        plan: its groups.
        example_input: shape and dtype of the input the device will run, with its batch axis.
    """
    from fedsprig.graph import materialize

    skeleton = _on_meta(model)
    return lambda mask: _walk(materialize(skeleton, plan, mask), example_input)["peak_bytes"]


def _walk(skeleton: nn.Module, example_input: Tensor) -> dict[str, int]:
    inputs = torch.empty_like(example_input, device="meta")
    walk = _Walk([*skeleton.parameters(), *skeleton.buffers()])
    walk.adopt(inputs)
    try:
        # the outer mode sends the network's own torch.zeros(...) to the meta device too
        with torch.no_grad(), torch.device("meta"), walk:
            skeleton(inputs)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise PlanError(
            f"the network cannot run on the shape {tuple(example_input.shape)} alone: {reason}; "
            "check the input's shape, and that the forward pass asks for no values"
        ) from error
    return {"macs": walk.macs, "peak_bytes": walk.peak}


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode without data: the deep copy finds meta tensors in its memo."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if is_parameter else empty
    return copy.deepcopy(model, memo).eval()


class _Walk(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages of one forward pass."""

    def __init__(self, constant: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0
        self.peak = 0
        self._live = 0
        self._storages: dict[int, weakref.ref[Any]] = {}
        for tensor in constant:
            self._follow(tensor, 0)

    def adopt(self, tensor: Tensor) -> None:
        """Count a tensor that existed before the pass."""
        self._follow(tensor, tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self._live)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, tuple | list) else (result,)
        count = _MACS.get(func.overloadpacket)
        if count is not None:
            self.macs += count(args, outputs)
        if func.overloadpacket is _aten.native_batch_norm and not args[5]:
            # In evaluation the kernels return empty statistics, the meta device full ones.
            outputs = outputs[:1]
        for tensor in outputs:
            if isinstance(tensor, Tensor):
                self._follow(tensor, tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self._live)
        return result

    def _follow(self, tensor: Tensor, size_bytes: int) -> None:
        """Add a storage that is not known yet, and subtract it when it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata  # the address: unique among live storages, and views share it
        if key in self._storages:
            return

        def freed(_: object) -> None:
            self._live -= size_bytes
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, freed)
        self._live += size_bytes


def _convolution(args: tuple[Any, ...], outputs: Sequence[Any]) -> int:
    inputs, weight, transposed = args[0], args[1], args[6]
    # every weight element meets every output pixel (input pixel, where transposed) of every picture
    # once
    places = inputs if transposed else outputs[0]
    return int(places.shape[0] * math.prod(places.shape[2:]) * weight.numel())


def _product(inner: int) -> Callable[[tuple[Any, ...], Sequence[Any]], int]:
    """MACs of a matrix product whose argument ``inner`` has the contracted axis last."""
    return lambda args, outputs: int(outputs[0].numel() * args[inner].shape[-1])


def _attention(args: tuple[Any, ...], outputs: Sequence[Any]) -> int:
    """Fused attention, where a device dispatches to it: queries by keys, then weights by values."""
    query, key, value = args[:3]
    pairs = query.shape[:-1].numel() * key.shape[-2]
    return int(pairs * (query.shape[-1] + value.shape[-1]))


_MACS: dict[Any, Callable[[tuple[Any, ...], Sequence[Any]], int]] = {
    _aten.convolution: _convolution,
    _aten.mm: _product(0),
    _aten.addmm: _product(1),
    _aten.bmm: _product(0),
    _aten.baddbmm: _product(1),
    _aten.mv: _product(0),
    _aten.addmv: _product(1),
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention: _attention,
    _aten._scaled_dot_product_efficient_attention: _attention,
}
