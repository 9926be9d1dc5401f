"""A fixed frame that a network adds to every picture, as a part of the network."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor, nn

from fedsprig.errors import DataError

INPUT_FRAME: Final = "input_frame"
"""The name under which a product's state holds the frame of its network."""


def framed(images: Tensor, frame: Tensor) -> Tensor:
    """Pictures ``[n, c, h, w]`` plus a frame ``[c, h, w]``.

    Raises:
        DataError: pictures of another size.
    """
    if images.shape[1:] != frame.shape:
        raise DataError(
            f"pictures are {list(images.shape[1:])}, the prompt is of {list(frame.shape)}: "
            "resize the pictures to those that it was learnt with"
        )
    return images + frame.to(images)


def add_to_input(network: nn.Module, frame: Tensor) -> nn.Module:
    """The network itself, which adds a frame to every picture from now on.

    Its parameters and their names stay; copies of it add the frame too.

    Args:
        network: takes pictures as its first argument.
        frame: ``[c, h, w]``; fixed.
    """
    network.register_forward_pre_hook(_Adds(frame.detach().clone()))
    return network


class _Adds:
    """A forward hook that can be copied with its module."""

    def __init__(self, frame: Tensor) -> None:
        self._frame = frame

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (framed(inputs[0], self._frame), *inputs[1:])
