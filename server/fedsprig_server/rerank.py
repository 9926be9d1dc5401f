"""The second stage of a search: devices say how well the best entries suit their pictures."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import numpy as np

from fedsprig.artifacts.digest import digest
from fedsprig.tasks import Hit, SketchIndex, TaskSketch
from fedsprig.tasks.similarity import HEAD_VALUES, entry_heads, rerank
from fedsprig.tasks.similarity.packed_heads import pack_heads, that_travel
from fedsprig.wire import COMPARE, Envelope
from fedsprig.wire import device_pb2 as pb
from fedsprig_server.attendance import Attendance
from fedsprig_server.config import SelectionConfig
from fedsprig_server.ledger import Ledger
from fedsprig_server.replies import read_compared
from fedsprig_server.scheduler import Answer, Ask


def reranked(
    hits: Sequence[Hit],
    index: SketchIndex,
    sketch: TaskSketch,
    selection: SelectionConfig,
    *,
    probe: bytes,
    here: Attendance,
    pictures: Mapping[str, float],
    ledger: Ledger,
) -> Generator[Ask, list[Answer], tuple[Hit, ...]]:
    """The best hits in the order that the cohort's devices give them.

    Every device gets the classifiers of the best entries and answers with a number for each, which
    it finds on the features that it kept when it described its pictures. A task's value is the mean
    over the pictures of its devices.

    Args:
        hits: Of the search by the task's sketch, best first.
        index: What was searched.
        sketch: Of the task.
        selection: What is asked for, and of how many hits.
        probe: The whole package of the probe, for a device that has lost its features.
        here: The cohort.
        pictures: That its devices said they have.
        ledger: Told of what this costs.

    Returns:
        Those hits, best first; the others are left out. Where none can be asked about, the best as
        they were.
    """
    best = askable(hits[: selection.shortlist], index)
    if not best:
        return tuple(hits[: selection.shortlist])
    places = index.positions([hit.name for hit in best])
    heads = entry_heads(index, places, spread=sketch.spread)
    body = pb.CompareRequest(probe=digest(probe), value=selection.rerank).SerializeToString()
    message = Envelope(COMPARE, body, pack_heads(heads))
    answers = yield from here.ask(
        dict.fromkeys(here.members, message),
        ledger,
        lambda device, answer: read_compared(
            answer,
            heads=len(heads),
            pictures=int(pictures[device]),
            value=HEAD_VALUES[selection.rerank],
            classes=len(sketch.counts),
        ),
        whole=lambda _: Envelope(COMPARE, body, pack_heads(heads, probe)),
    )
    for device, reply in answers.items():
        ledger.worked(device, COMPARE, reply.seconds)
    replies = answers.values()
    weights = [reply.pictures for reply in replies]
    values = np.average([reply.values for reply in replies], axis=0, weights=weights)
    return rerank(best, values.tolist())


def askable(hits: Sequence[Hit], index: SketchIndex) -> list[Hit]:
    """Hits whose classifiers a device can compare with: one of too many classes is left out."""
    sizes = np.diff(index.starts)[index.positions([hit.name for hit in hits])]
    return [hits[at] for at in that_travel(sizes.tolist())]
