"""One forward pass watched: what is called, in which order, and what it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fedsprig.errors import PlanError
from fedsprig.graph.heads import head_layout, head_macs

NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
PRODUCERS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(slots=True)
class Pass:
    """What a forward pass showed.

    Attributes:
        calls: module path -> how often it was called, in the order of the first calls.
        channel_axis: producer -> the axis of its channels in its output.
        norm_of: producer -> the normalisation that reads its output, directly.
        macs_per_weight: weight tensor -> MACs per element.
        head_macs: attention module -> MACs of one head's products.
        output: the model's output.
    """

    calls: Counter[str] = field(default_factory=Counter)
    channel_axis: dict[str, int] = field(default_factory=dict)
    norm_of: dict[str, str] = field(default_factory=dict)
    macs_per_weight: dict[str, int] = field(default_factory=dict)
    head_macs: dict[str, int] = field(default_factory=dict)
    output: Any = None


def watch(model: nn.Module, example: Tensor) -> Pass:
    """Run a model once, without gradients, and note what happens.

    Args:
        model: in evaluation mode.
        example: one input, batch 1.

    Raises:
        PlanError: the model cannot run on the example.
    """
    seen = Pass()
    made_by: dict[int, tuple[str, Tensor]] = {}  # holds the tensors, so that no id is reused

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen.calls[name] += 1
            given = args[0] if args and isinstance(args[0], Tensor) else None
            if isinstance(module, NORMS) and given is not None and id(given) in made_by:
                seen.norm_of[made_by[id(given)][0]] = name
            if isinstance(module, PRODUCERS) and isinstance(output, Tensor) and given is not None:
                made_by[id(output)] = (name, output)
                seen.channel_axis[name] = -1 if isinstance(module, nn.Linear) else 1
                weight = f"{name}.weight" if name else "weight"
                macs = _macs_per_weight(module, given, output)
                seen.macs_per_weight[weight] = seen.macs_per_weight.get(weight, 0) + macs
            layout = head_layout(module)
            if layout is not None and given is not None:
                shape = tuple(given.shape)
                seen.head_macs[name] = seen.head_macs.get(name, 0) + head_macs(module, shape)

        return hook

    handles = [m.register_forward_hook(after(name)) for name, m in model.named_modules()]
    try:
        with torch.no_grad():
            seen.output = model(example)
    except Exception as error:
        raise PlanError(
            f"the model cannot run on an input of {tuple(example.shape)} "
            f"({type(error).__name__}): give an example of the right size"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _macs_per_weight(module: nn.Module, given: Tensor, output: Tensor) -> int:
    """How often each weight is used: once per output position (per input one if transposed)."""
    if isinstance(module, nn.Linear):
        return output.numel() // output.shape[-1]
    assert isinstance(module, nn.modules.conv._ConvNd)  # noqa: S101 - PRODUCERS has no third kind
    return (given if module.transposed else output)[:, 0].numel()
