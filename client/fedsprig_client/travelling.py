"""What of a network travels between device and server, and what a round's request says of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from fedsprig.adapters import adapter_state, is_statistic
from fedsprig.adapters.factors import TRAINS, held
from fedsprig.errors import MessageError
from fedsprig.subnetwork import SubNetwork
from fedsprig.training import TrainConfig
from fedsprig.wire import device_pb2 as pb


def measures(network: SubNetwork) -> bool:
    """Whether the device measures its own normalisation statistics, which then never travel."""
    return network.adapter is not None and network.adapter.local_statistics


def travelling(network: SubNetwork) -> dict[str, Tensor]:
    """The part of the adapter's state that the server gets."""
    state = adapter_state(network.module)
    if not measures(network):
        return state
    return {name: value for name, value in state.items() if not is_statistic(name)}


def travelling_statistics(network: SubNetwork) -> dict[str, np.ndarray]:
    """The normalisation statistics that the server gets, by the names of the answer's arrays."""
    return {
        f"statistics/{name}": value.numpy()
        for name, value in travelling(network).items()
        if is_statistic(name)
    }


def hold(network: SubNetwork, received: Mapping[str, np.ndarray], trains: str) -> None:
    """Freeze the factors that do not train in this round: they do not travel up either."""
    if trains not in ("", *TRAINS):
        raise MessageError(f"no factor is called {trains!r:.40}: use {', '.join(TRAINS)}")
    for name in held(received, trains or "both"):
        network.module.get_parameter(name).requires_grad = False


def train_config(wanted: pb.LocalTraining) -> TrainConfig:
    """The settings of a round's training."""
    return TrainConfig(
        steps=wanted.steps or None,
        epochs=None if wanted.steps else wanted.epochs,
        batch_size=wanted.batch_size,
        learning_rate=wanted.learning_rate,
        momentum=wanted.momentum,
        weight_decay=wanted.weight_decay,
        schedule=wanted.schedule,  # type: ignore[arg-type]
        augment=wanted.augment,  # type: ignore[arg-type]
        optimiser=wanted.optimiser or "sgd",  # type: ignore[arg-type]
        head_learning_rate_scale=wanted.head_learning_rate_scale or 1.0,
    )
