"""Which layers of a model have a weight that is a matrix, and so can be cut into blocks."""

from __future__ import annotations

from torch import nn

from fedsprig.errors import PlanError
from fedsprig.masks.block_layout import BlockLayout, Shape
from fedsprig.models.head import is_of_head
from fedsprig.spelling import unknown


def takes_blocks(module: nn.Module) -> bool:
    """Whether a module is a linear layer or an ungrouped 1x1 convolution.

    A subclass may compute something else by its weight, so only the exact types are taken.
    """
    if type(module) is nn.Conv2d:
        return module.kernel_size == (1, 1) and module.groups == 1
    return type(module) is nn.Linear


def blocks_of(model: nn.Module, *, head: str, block: Shape = (32, 32)) -> BlockLayout:
    """The blocks of all layers of a model that have any.

    Args:
        model: at full width, without an adapter.
        head: module path of the classifier, which stays dense; empty if there is none.
        block: ``(p, q)``: outputs and inputs of a whole block.

    Raises:
        PlanError: no such head.
    """
    modules = dict(model.named_modules())
    if head and head not in modules:
        raise PlanError(unknown("head", head, modules))
    shapes = {
        f"{path}.weight" if path else "weight": tuple(module.get_parameter("weight").shape)
        for path, module in modules.items()
        if takes_blocks(module) and not is_of_head(path, head)
    }
    return BlockLayout.of(shapes, block)
