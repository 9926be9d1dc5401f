"""The tasks that a device has learnt, ready to be switched between.

::

    from fedsprig_client.tasks import open_tasks

    tasks = open_tasks("device.toml")
    network = tasks.switch("parcels.one_shot")
    scores = network(fedsprig.training.to_tensor(images, tasks.card))
"""

from __future__ import annotations

import logging
from pathlib import Path

from fedsprig.bases import BaseWeights
from fedsprig.errors import DataError, FedsprigError, MissingNetworkError
from fedsprig.graph import GroupPlan
from fedsprig.switching import CACHE_BYTES, TaskSwitch
from fedsprig.updates import decode_state
from fedsprig.wire import device_pb2 as pb
from fedsprig.wire import parse
from fedsprig_client.config import DeviceConfig
from fedsprig_client.store import DeviceStore

log = logging.getLogger(__name__)


def open_tasks(device: str | Path, *, cache_bytes: int = CACHE_BYTES) -> TaskSwitch:
    """Every run in a device's store that came to its end, beside the base model that it keeps.

    Runs are named as the server names them: the task, a dot, ``one_shot``. One that does not fit
    (another base or plan than most of the others, damaged on disk) is left out with a warning;
    nothing is removed. The disk is not touched again afterwards.

    Args:
        device: The device's file.
        cache_bytes: See :class:`fedsprig.switching.TaskSwitch`.

    Raises:
        DataError: The file cannot be used, or names no base model.
        MissingNetworkError: No run has ended yet.
        WeightsError: The base model is absent.
    """
    config = DeviceConfig.load(Path(device))
    if config.base is None:
        raise DataError(f"{device}: no base model is kept here: add the table [base]")
    store = DeviceStore(config.store)
    packages, plans = {}, []
    for run, trained in store.adapters().items():
        try:
            package, state = store.package(run), decode_state(trained)
            plans.append(parse(pb.SubNetwork, package).plan_digest)
            packages[run] = package, state
        except FedsprigError as error:
            log.warning("run %r is left out: %s", run, error)
    plan = store.plan(max(sorted(set(plans)), key=plans.count)) if plans else None
    if plan is None:
        raise MissingNetworkError(f"{device}: no run has ended yet: take part in one first")
    switch = TaskSwitch(
        GroupPlan.from_bytes(plan), BaseWeights.load(**config.base).state, cache_bytes=cache_bytes
    )
    for run, (package, state) in packages.items():
        try:
            switch.add_package(run, package, state)
        except FedsprigError as error:
            log.warning("run %r is left out: %s", run, error)
    return switch
