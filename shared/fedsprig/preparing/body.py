"""Training all of a network but its classifier: what preparing and healing share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedsprig.errors import TrainingError
from fedsprig.graph import GroupPlan
from fedsprig.models.head import is_of_head
from fedsprig.preparing.config import HealConfig, PrepareConfig
from fedsprig.training.config import cosine
from fedsprig.training.optimiser import (
    check_weights,
    clipped_step,
    finite_loss,
    parameter_groups,
    remember,
    remembered,
    set_rate,
)


def check_head(plan: GroupPlan) -> None:
    """Refuse a base whose features cannot be told.

    Raises:
        TrainingError: It has no classifier.
    """
    if not plan.head:
        raise TrainingError(
            f"{plan.model or 'the model'} has no classifier: its features cannot be told"
        )


class BodyTraining:
    """SGD over a network's body, step by step, along half a cosine.

    Args:
        module: All parameters but the head's require a gradient until :meth:`close`.
        head: Module path of its classifier.
        config: Of the optimiser.
    """

    def __init__(self, module: nn.Module, head: str, config: PrepareConfig | HealConfig) -> None:
        self._module, self._config = module, config
        self._required = {name: one.requires_grad for name, one in module.named_parameters()}
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(not is_of_head(name, head))
        self._optimiser = torch.optim.SGD(
            parameter_groups(module, config.weight_decay),
            lr=config.learning_rate,
            momentum=config.momentum,
        )

    def begin(self, step: int) -> None:
        """Before the losses of a step, ``0 <= step < steps``."""
        config = self._config
        set_rate(self._optimiser, cosine(config.learning_rate, step, config.steps))
        self._optimiser.zero_grad()

    def learn(self, loss: Tensor, step: int) -> float:
        """Add a loss's gradient to those of the step.

        Returns:
            The loss.

        Raises:
            NonFiniteLossError: It is NaN or infinite.
        """
        config = self._config
        value = finite_loss(loss.item(), step, config.steps, config.learning_rate)
        torch.autograd.backward(loss)
        return value

    def end(self) -> None:
        """After the losses of a step: change the weights."""
        clipped_step(self._optimiser, self._config.clip_norm)

    def check(self, done: int) -> None:
        """Make sure that the steps so far have not spoilt the network; none needs to have been.

        Raises:
            NonFiniteLossError: A weight or a statistic is NaN or infinite.
        """
        check_weights(self._module, done, self._config.steps, self._config.learning_rate)

    def momenta(self) -> dict[str, Tensor]:
        """What the optimiser remembers; empty before the first step."""
        return remembered(self._optimiser, self._module)

    def remember(self, momenta: Mapping[str, Tensor]) -> None:
        """Give the optimiser back what :meth:`momenta` said.

        Raises:
            TrainingError: It is of another network.
        """
        remember(self._optimiser, self._module, momenta)

    def close(self) -> None:
        """No gradients are left, and what required them before does so again."""
        self._optimiser.zero_grad()
        for name, parameter in self._module.named_parameters():
            parameter.requires_grad_(self._required[name])
