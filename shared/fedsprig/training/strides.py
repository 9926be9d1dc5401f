"""Strided 1x1 convolutions as subsampling and a convolution without stride.

oneDNN, which torch 2.14 computes convolutions with on a CPU, writes outside its workspace in the
weight gradient of a strided 1x1 convolution that has few input channels (fewer than 16 with
AVX-512, 8 with AVX2) and channels-last input: the process crashes, or the gradient is silently
wrong (https://github.com/uxlfoundation/oneDNN/issues/6035). The shortcuts of pruned residual
networks are such convolutions. Taking every s-th pixel first gives the same result another, sound
way, and is no slower: it is what oneDNN does inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def subsampled_strides(model: nn.Module) -> Iterator[None]:
    """Within it, strided 1x1 convolutions of the model subsample their input and have stride 1.

    Convolutions with padding keep their stride; oneDNN computes them otherwise.
    """
    changed = [
        (module, module.stride)
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and set(module.stride) != {1}
        and set(module.padding) == {0}
    ]
    hooks = [module.register_forward_pre_hook(_subsampler(stride)) for module, stride in changed]
    try:
        for module, _ in changed:
            module.stride = (1, 1)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, stride in changed:
            module.stride = stride


def _subsampler(stride: tuple[int, ...]) -> Any:
    rows, columns = stride

    def subsample(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][..., ::rows, ::columns], *inputs[1:])

    return subsample
