"""Updates that a hostile or broken device may send; each is refused by name and costs no memory.

Run this file with a folder as its argument to get the files themselves:
``python tests/attacks/test_update_attacks.py FOLDER``.
"""

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fedsprig.artifacts import pack, unpack
from fedsprig.errors import (
    ArtifactError,
    LimitError,
    NonFiniteUpdateError,
    StaleUpdateError,
    TruncatedArtifactError,
    UnknownNameError,
    UpdateError,
    UpdateShapeError,
)
from fedsprig.updates import decode_update, encode_update

BASE = "0" * 64
SHAPES = {"conv.adapter_b": (8, 4), "bn.weight": (8,), "bn.running_var": (8,)}
HONEST = encode_update({name: np.ones(shape) for name, shape in SHAPES.items()}, base_digest=BASE)
ARRAYS, METADATA = unpack(HONEST)


def forged(arrays=None, **metadata):
    return pack(ARRAYS | (arrays or {}), METADATA | metadata)


def with_value(part, value):
    changed = ARRAYS[part].copy()
    changed[-1] = value
    return forged({part: changed})


ATTACKS = {
    "nothing": (b"", TruncatedArtifactError),
    "cut off": (HONEST[:-1], TruncatedArtifactError),
    "cut off in the header": (HONEST[:40], TruncatedArtifactError),
    "padded": (HONEST + b"\0", ArtifactError),
    "flood": (HONEST + bytes(10_000_000), LimitError),
    "length bomb": (b"\xff" * 8 + HONEST[8:], LimitError),
    "NaN": (with_value("halves", np.nan), NonFiniteUpdateError),
    "infinity": (with_value("halves", np.inf), NonFiniteUpdateError),
    "scale beyond every number": (with_value("bases", 2000), NonFiniteUpdateError),
    "wrong dtype": (forged({"integers": ARRAYS["integers"].astype("f4")}), UpdateShapeError),
    "wrong length": (forged({"integers": np.zeros(31, np.int8)}), UpdateShapeError),
    "right length, wrong axes": (forged({"integers": np.zeros((4, 8), np.int8)}), UpdateShapeError),
    "one part too many": (forged({"extra": np.zeros(1, np.int8)}), UpdateShapeError),
    "many parts": (
        forged({f"p{i}": np.zeros(1, np.int8) for i in range(100)}),
        LimitError,
    ),
    "no parts": (pack({}, METADATA), UpdateShapeError),
    "no metadata": (pack(ARRAYS), UpdateError),
    "another format": (forged(format="fedsprig-state/1"), UpdateError),
    "another codec": (forged(codec="pickle"), UnknownNameError),
    "a codec that does not fit the parts": (forged(codec="float32"), UpdateShapeError),
    "another base": (forged(base="1" * 64), StaleUpdateError),
    "an empty base": (forged(base=""), StaleUpdateError),
    "another layout": (forged(layout="1" * 64), UpdateShapeError),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused_by_name_in_one_line_without_memory(name):
    data, error = ATTACKS[name]
    tracemalloc.start()
    try:
        with pytest.raises(error) as caught:
            decode_update(data, shapes=SHAPES, base_digest=BASE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert peak < 300_000


def test_the_honest_update_is_taken():
    decoded = decode_update(HONEST, shapes=SHAPES, base_digest=BASE)
    assert all(np.allclose(array, 1, atol=0.01) for array in decoded.values())


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for attack, (content, _) in ATTACKS.items():
        (folder / f"{attack.replace(' ', '-')}.update").write_bytes(content)
