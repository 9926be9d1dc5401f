"""A finished run as the runner would describe it, with made-up figures."""

from __future__ import annotations

import numpy as np
import pytest

from fedsprig_sim.result import (
    ArmRecord,
    BaseSummary,
    DeviceRecord,
    Download,
    GroupKept,
    LibraryRecord,
    MaskRecord,
    NeighbourRecord,
    Result,
    TaskRecord,
)

GROUPS = [("conv1", 32, "stream")]
GROUPS += [(f"layer1.{i}.conv1", 32, "inner") for i in range(3)]
GROUPS += [
    ("layer2.0.conv2", 64, "stream"),
    *((f"layer2.{i}.conv1", 64, "inner") for i in range(3)),
]
GROUPS += [("layer3.0.conv2", 128, "stream")]
GROUPS += [(f"layer3.{i}.conv1", 128, "inner") for i in range(3)]
BUDGETS = {"small": 0.2, "medium": 0.35, "large": 0.55}
BASE_MACS, BASE_PARAMETERS = 162_000_000, 1_090_000
GAINS = {"one_shot": 0.0, "magnitude": -0.035, "random": -0.062, "full_finetune": 0.024}


def masks(rng: np.random.Generator) -> tuple[MaskRecord, ...]:
    scores = {name: rng.random(units) for name, units, _ in GROUPS}
    return tuple(
        MaskRecord(
            budget=budget,
            groups=tuple(
                GroupKept(
                    name=name,
                    kind=kind,
                    units=units,
                    bits=np.packbits(scores[name] < keep).tobytes().hex(),
                )
                for name, units, kind in GROUPS
            ),
            parameters=int(BASE_PARAMETERS * keep * keep),
            macs=int(BASE_MACS * keep * 0.9),
            peak_bytes=int(2.6e5 * (0.4 + keep)),
        )
        for budget, keep in BUDGETS.items()
    )


def task(name: str, rng: np.random.Generator, *, library: list[str], note: str = "") -> TaskRecord:
    level = rng.uniform(0.55, 0.85)
    curves = {
        arm: tuple(
            float(np.clip(level + gain + 0.28 * (1 - 0.55**step) - 0.2 + rng.normal(0, 0.01), 0, 1))
            for step in range(6)
        )
        for arm, gain in GAINS.items()
    }
    similarity = np.sort(rng.normal(0.1, 0.3, len(library)))[::-1]
    weight = np.exp(similarity / 0.25)
    weight /= weight.sum()
    return TaskRecord(
        name=name,
        data="fashion",
        classes=("Sandal", "Sneaker", "Ankle boot", "Bag"),
        camera="rotate90",
        note=note,
        device_records=tuple(
            DeviceRecord(
                name=f"{name}.device-{i + 1}",
                budget=budget,
                pictures=160,
                accuracy={arm: curve[-1] for arm, curve in curves.items()},
                update_bytes=16_200 + 4_000 * i,
                download_bytes=420_000 + 90_000 * i,
                seconds=6.5 + 2 * i,
                rounds=5,
            )
            for i, budget in enumerate(BUDGETS)
        ),
        base_bytes=4 * BASE_PARAMETERS,
        base_macs=BASE_MACS,
        base_parameters=BASE_PARAMETERS,
        download=Download(probe=182_000, sub_network=265_000, rounds=104_000),
        neighbours=tuple(
            NeighbourRecord(name=n, similarity=float(s), weight=float(w))
            for n, s, w in zip(library, similarity, weight, strict=True)
        ),
        masks=masks(rng),
        arms={
            arm: ArmRecord(curve=curve, device_seconds=22.0 if arm == "full_finetune" else 7.0)
            for arm, curve in curves.items()
        },
        server_seconds=0.21,
    )


@pytest.fixture
def result() -> Result:
    rng = np.random.default_rng(0)
    library = [f"library-{i + 1}" for i in range(12)]
    return Result(
        name="synthetic",
        seed=0,
        seconds=93.4,
        runtime="in-process",
        base=BaseSummary(
            model="sprig20",
            weights="shipped",
            digest="9f" * 32,
            parameters=BASE_PARAMETERS,
            macs=BASE_MACS,
            bytes=4 * BASE_PARAMETERS,
            units=sum(units for _, units, _ in GROUPS),
        ),
        library=tuple(
            LibraryRecord(
                name=name,
                data="digits",
                classes=("3", "5", "8"),
                camera="invert" if i % 2 else "plain",
                training_accuracy=0.91,
            )
            for i, name in enumerate(library)
        ),
        tasks=(
            task("footwear", rng, library=library),
            task("shirts", rng, library=library, note="Seen in pretraining."),
            task("digits-low", rng, library=library),
            task("digits-high", rng, library=library),
            task("outerwear", rng, library=library),
        ),
        scenario={"name": "synthetic", "seed": 0},
        versions={"fedsprig": "0.1.0", "python": "3.11.7"},
    )
