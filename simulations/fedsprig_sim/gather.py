"""From the library's rows to a result: what every arm reached and what it cost."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from fedsprig.errors import RunError
from fedsprig.masks import Mask
from fedsprig.masks.costs import BYTES_PER_PARAMETER
from fedsprig.wire import ATTENTION, COMPARE, CUT, DESCRIBE, EVALUATE, INSTALL, ROUND
from fedsprig_server.base import Base
from fedsprig_server.config import ServerConfig
from fedsprig_server.ledger import Ledger
from fedsprig_server.library import Library, Run
from fedsprig_sim.expand import Expansion, TaskSpec
from fedsprig_sim.result import (
    ArmName,
    ArmRecord,
    BaseSummary,
    CutRecord,
    DeviceRecord,
    Download,
    LibraryRecord,
    MaskRecord,
    NeighbourRecord,
    Result,
    TaskRecord,
    TruncationRecord,
    versions,
)
from fedsprig_sim.scenario import Scenario

SHOWN_NEIGHBOURS = 8


def gather_result(
    scenario: Scenario,
    expansion: Expansion,
    library: Library,
    base: Base,
    config: ServerConfig,
    *,
    runtime: str,
    seconds: float,
) -> Result:
    """Put the figures of a finished run together.

    Raises:
        RunError: An arm of a task is not finished.
    """
    whole = Mask.full(base.plan)
    parameters = base.parameters(whole, num_classes=2)
    metrics = {entry.name: entry.metrics for entry in library.entries(base.digest)}
    return Result(
        name=scenario.name,
        seed=scenario.seed,
        seconds=seconds,
        runtime=runtime,
        base=BaseSummary(
            model=scenario.base.model,
            weights=scenario.base.weights,
            digest=base.digest,
            parameters=parameters,
            macs=base.macs(whole, num_classes=2),
            bytes=BYTES_PER_PARAMETER * parameters,
            units=base.plan.units,
        ),
        library=tuple(
            LibraryRecord(
                name=spec.name,
                data=spec.data,
                classes=spec.classes,
                camera=spec.camera,
                training_accuracy=metrics.get(spec.name, {}).get("training_accuracy"),
            )
            for spec in expansion.library
        ),
        tasks=tuple(_task(spec, scenario, library, base, config) for spec in expansion.tasks),
        scenario=scenario.model_dump(mode="json"),
        versions=dict(versions("fedsprig", "torch", "torchvision", "flwr", "numpy")),
    )


def _task(
    spec: TaskSpec, scenario: Scenario, library: Library, base: Base, config: ServerConfig
) -> TaskRecord:
    described = _finished(library, spec.name, "described")
    arms = {arm: _finished(library, f"{spec.name}.{arm}", "done") for arm in config.arms}
    ledgers = {arm: Ledger.from_json(run.state["ledger"]) for arm, run in arms.items()}
    probe = Ledger.from_json(described.state["ledger"])
    whole, classes = Mask.full(base.plan), len(spec.classes)
    own, last = ledgers["one_shot"], config.rounds.count
    names = [device.name for device in spec.devices if device.name in own.at(last)]
    return TaskRecord(
        name=spec.name,
        data=spec.data,
        classes=spec.classes,
        camera=spec.camera,
        note=scenario.data[spec.data].note,
        device_records=tuple(
            DeviceRecord(
                name=device.name,
                budget=device.budget,
                pictures=classes * scenario.devices.images_per_class,
                accuracy={
                    _arm(arm): ledger.at(last)[device.name]
                    for arm, ledger in ledgers.items()
                    if device.name in ledger.at(last)
                },
                update_bytes=own.largest_update.get(device.name, 0),
                download_bytes=_down(probe, device.name, DESCRIBE, COMPARE)
                + _down(own, device.name, INSTALL, ROUND, ATTENTION, CUT, EVALUATE),
                seconds=_seconds(probe, device.name) + _seconds(own, device.name),
                rounds=own.rounds.get(device.name, 0),
            )
            for device in spec.devices
            if device.name in names
        ),
        base_bytes=BYTES_PER_PARAMETER * base.parameters(whole, num_classes=classes),
        base_macs=base.macs(whole, num_classes=classes),
        base_parameters=base.parameters(whole, num_classes=classes),
        download=Download(
            probe=_mean(_down(probe, name, DESCRIBE, COMPARE) for name in names),
            sub_network=_mean(_down(own, name, INSTALL) for name in names),
            rounds=_mean(_down(own, name, ROUND, EVALUATE) for name in names),
            pruning=_mean(_down(own, name, ATTENTION, CUT) for name in names),
        ),
        neighbours=tuple(
            NeighbourRecord(**near) for near in described.state["neighbours"][:SHOWN_NEIGHBOURS]
        ),
        masks=_masks(spec, arms["one_shot"], library, base),
        arms={
            _arm(arm): ArmRecord(
                curve=_curve(ledger, last),
                device_seconds=_training_seconds(ledger),
                truncation=_truncation(library, f"{spec.name}.{arm}"),
                cuts=_cuts(spec, arms[arm]),
            )
            for arm, ledger in ledgers.items()
        },
        server_seconds=described.state["server_seconds"] + arms["one_shot"].state["server_seconds"],
    )


def _masks(spec: TaskSpec, run: Run, library: Library, base: Base) -> tuple[MaskRecord, ...]:
    """One record for every budget that the task's devices have and that could be met."""
    digests = run.state["masks"]
    found = {
        device.budget: digests[device.name] for device in spec.devices if device.name in digests
    }
    records = []
    for budget, digest in found.items():
        mask = Mask.from_bytes(library.blobs.get(digest), base.plan)
        records.append(
            MaskRecord.of(
                mask,
                base.plan,
                budget=budget,
                parameters=base.parameters(mask, num_classes=len(spec.classes)),
                macs=base.macs(mask, num_classes=len(spec.classes)),
                peak_bytes=base.peak_bytes(mask),
            )
        )
    return tuple(records)


def _finished(library: Library, name: str, phase: str) -> Run:
    run = library.run(name)
    if run is None or run.phase != phase:
        raise RunError(f"run {name!r} is not finished: run the scenario again with --resume")
    return run


def _arm(name: str) -> ArmName:
    return name  # type: ignore[return-value]


def _curve(ledger: Ledger, last: int) -> tuple[float, ...]:
    """The mean of what devices reported of each state.

    Devices that did not get to the end are left out, unless nobody else reported of a state.
    """
    ended = ledger.at(last)
    points = []
    for state in range(last + 1):
        known = ledger.at(state)
        shown = [value for name, value in known.items() if name in ended] or [*known.values()]
        points.append(statistics.fmean(shown))
    return tuple(points)


def _training_seconds(ledger: Ledger) -> float:
    """Of one device, mean over those whose training counted."""
    return statistics.fmean(
        [kinds[ROUND] for kinds in ledger.seconds.values() if ROUND in kinds] or [0.0]
    )


def _truncation(library: Library, run: str) -> tuple[TruncationRecord, ...]:
    found = [round.metrics for round in library.rounds(run) if "truncation_worst" in round.metrics]
    return tuple(
        TruncationRecord(worst=metrics["truncation_worst"], mean=metrics["truncation_mean"])
        for metrics in found
    )


def _cuts(spec: TaskSpec, run: Run) -> tuple[CutRecord, ...]:
    """A record for every cut and budget: devices of one budget are cut alike."""
    budgets = {device.name: device.budget for device in spec.devices}
    records = []
    for cut in run.state.get("cuts", []):
        before = cut["accuracy"]
        for width in cut["widths"]:
            for budget in dict.fromkeys(budgets[name] for name in width["devices"]):
                known = [value for name, value in before.items() if budgets[name] == budget]
                records.append(
                    CutRecord(
                        round=cut["round"],
                        budget=budget,
                        threshold=width["threshold"],
                        units=width["units"],
                        parameters=width["parameters"],
                        macs=width["macs"],
                        accuracy_before=statistics.fmean(known or before.values()),
                    )
                )
    return tuple(records)


def _down(ledger: Ledger, device: str, *kinds: str) -> int:
    """Bytes that a device received in exchanges that counted."""
    sent = ledger.bytes.get(device, {})
    return sum(sent[kind][0] for kind in kinds if kind in sent)


def _seconds(ledger: Ledger, device: str) -> float:
    return sum(ledger.seconds.get(device, {}).values())


def _mean(values: Iterable[int]) -> int:
    return round(statistics.fmean(values))
