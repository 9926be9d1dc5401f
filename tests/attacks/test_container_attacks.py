"""Files that attack a reader of safetensors, each a claim of the format turned into a lie.

Run this file with a folder as its argument to get the files themselves, for other readers:
``python tests/attacks/test_container_attacks.py FOLDER``.
"""

import json
import struct
import sys
import tracemalloc
from pathlib import Path

import pytest

from fedsprig.artifacts import unpack
from fedsprig.errors import ArtifactError, LimitError, TruncatedArtifactError


def framed(header, body=b"", *, length=None):
    """Put a header (JSON bytes, or anything to be dumped) and a body behind a length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def one(**changes):
    return framed({"a": entry() | changes}, b"\0\0\0\0")


HUGE = 2**63
ONE = b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'

ATTACKS = {
    # name: (the bytes, the error, a word of its message)
    "nothing": (b"", TruncatedArtifactError, "no header"),
    "half a length": (b"\1\0\0", TruncatedArtifactError, "no header"),
    "length bomb": (framed({}, length=2**64 - 1), LimitError, "claims"),
    "length just over": (framed({}, length=(4 << 20) + 1), LimitError, "claims"),
    "length past the end": (framed({}, length=1000), TruncatedArtifactError, "header needs"),
    "length of nothing": (framed(b""), ArtifactError, "begin with"),
    "length too short": (framed({"a": entry()}, length=5), ArtifactError, "JSON"),
    "no JSON": (framed(b"{nonsense"), ArtifactError, "JSON"),
    "bad UTF-8": (framed(b'{"\xff":1}'), ArtifactError, "JSON"),
    "a list": (framed(b"[]"), ArtifactError, "begin with"),
    "nesting bomb": (framed(b'{"a":' + b"[" * 100_000), ArtifactError, "nested"),
    "pickle": (b"\x80\x04\x95" + b"\0" * 5 + b"cos\nsystem\n(S'true'\ntR.", LimitError, "claims"),
    "zip file": (b"PK\x03\x04\x14\0\0\0" + b"\0" * 40, LimitError, "claims"),
    "duplicate name": (
        framed(b'{"a":' + ONE + b',"a":' + ONE + b"}", b"\0"),
        ArtifactError,
        "twice",
    ),
    "duplicate by escape": (
        framed(b'{"a":' + ONE + b',"\\u0061":' + ONE + b"}", b"\0"),
        ArtifactError,
        "twice",
    ),
    "duplicate field": (
        framed(b'{"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}}', b"\0"),
        ArtifactError,
        "twice",
    ),
    "duplicate metadata": (framed(b'{"__metadata__":{"k":"1","k":"2"}}'), ArtifactError, "twice"),
    "NUL in a name": (framed({"a\0b": entry()}, b"\0" * 4), ArtifactError, "name"),
    "line break in a name": (framed({"a\nb": entry()}, b"\0" * 4), ArtifactError, "name"),
    "empty name": (framed({"": entry()}, b"\0" * 4), ArtifactError, "name"),
    "lone surrogate in a name": (
        framed(b'{"\\ud800":' + ONE + b"}", b"\0"),
        ArtifactError,
        "name",
    ),
    "name bomb": (framed({"a" * 1000: entry()}, b"\0" * 4), LimitError, "name"),
    "NUL in metadata": (framed({"__metadata__": {"k": "\0"}}), ArtifactError, "metadata"),
    "metadata of numbers": (framed({"__metadata__": {"k": 1}}), ArtifactError, "metadata"),
    "metadata as an array": (framed({"__metadata__": entry()}), ArtifactError, "metadata"),
    "metadata null": (framed({"__metadata__": None}), ArtifactError, "metadata"),
    "overlap": (
        framed({"a": entry(offsets=(0, 4)), "b": entry(offsets=(2, 6))}, b"\0" * 6),
        ArtifactError,
        "overlap",
    ),
    "same bytes twice": (
        framed({"a": entry(), "b": entry()}, b"\0" * 4),
        ArtifactError,
        "overlap",
    ),
    "gap": (
        framed({"a": entry(offsets=(0, 4)), "b": entry(offsets=(8, 12))}, b"\0" * 12),
        ArtifactError,
        "gap",
    ),
    "gap at the start": (framed({"a": entry(offsets=(4, 8))}, b"\0" * 8), ArtifactError, "gap"),
    "hidden tail": (framed({"a": entry()}, b"\0" * 4 + b"#!/bin/sh"), ArtifactError, "follow"),
    "truncated data": (framed({"a": entry()}, b"\0" * 3), TruncatedArtifactError, "arrays need"),
    "offsets backwards": (one(data_offsets=[4, 0]), ArtifactError, "fit"),
    "offset negative": (one(data_offsets=[-4, 0]), ArtifactError, "integers"),
    "offset overflow": (one(data_offsets=[HUGE * 2 - 4, HUGE * 2]), ArtifactError, "gap"),
    "offset float": (one(data_offsets=[0, 4.0]), ArtifactError, "integers"),
    "offset boolean": (one(data_offsets=[False, 4]), ArtifactError, "integers"),
    "three offsets": (one(data_offsets=[0, 4, 4]), ArtifactError, "two"),
    "offsets absent": (framed({"a": {"dtype": "U8", "shape": [0]}}), ArtifactError, "needs dtype"),
    "field unknown": (one(code="print()"), ArtifactError, "no more"),
    "entry no object": (framed({"a": 1}), ArtifactError, "needs dtype"),
    "shape too large for its bytes": (one(shape=[2]), ArtifactError, "fit"),
    "shape negative": (one(shape=[-1, -1]), ArtifactError, "integers"),
    "shape overflow to the right size": (one(shape=[HUGE, 4, HUGE]), LimitError, "larger"),
    "shape huge beside zero": (
        framed({"a": entry(shape=[0, HUGE, HUGE], offsets=(0, 0))}),
        LimitError,
        "larger",
    ),
    "shape huge and honest": (
        framed({"a": entry("U8", [2**40], (0, 2**40))}),
        LimitError,
        "larger",
    ),
    "shape within limits, no data": (
        framed({"a": entry("U8", [2**30], (0, 2**30))}),
        TruncatedArtifactError,
        "arrays need",
    ),
    "many axes": (one(shape=[1] * 65), LimitError, "axes"),
    "many axes of a million": (one(shape=[1] * 1_000_000), LimitError, "axes"),
    "shape text": (one(shape="1"), ArtifactError, "integers"),
    "integer of 5000 digits": (
        framed(b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}'),
        ArtifactError,
        "JSON",
    ),
    "NaN as a number": (
        framed(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}'),
        ArtifactError,
        "JSON",
    ),
    "many arrays": (
        framed({f"{i}": entry("U8", [0], (0, 0)) for i in range(20_000)}),
        LimitError,
        "arrays",
    ),
    "dtype unknown": (one(dtype="object"), ArtifactError, "convert"),
    "dtype that numpy has not": (one(dtype="BF16", shape=[2]), ArtifactError, "convert"),
    "dtype no text": (one(dtype=["F32"]), ArtifactError, "convert"),
    "boolean of 2": (framed({"a": entry("BOOL", [1], (0, 1))}, b"\2"), ArtifactError, "boolean"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused_by_name_in_one_line_without_memory(name):
    data, error, word = ATTACKS[name]
    tracemalloc.start()
    try:
        with pytest.raises(error, match=word) as caught:
            unpack(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    # A JSON parser needs some multiple of the header; a claim in it may size nothing.
    assert peak < 200_000 + 60 * len(data)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for attack, (content, _, _) in ATTACKS.items():
        (folder / f"{attack.replace(' ', '-')}.safetensors").write_bytes(content)
