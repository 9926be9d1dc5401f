"""A finished task becomes a library entry, with scores that know what was learned."""

from __future__ import annotations

import statistics
import time

import numpy as np

from fedsprig.graph import shrink_plan
from fedsprig.masks import Mask, ScoreSet
from fedsprig_server.arms import PUBLISHED
from fedsprig_server.base import Base
from fedsprig_server.ledger import Ledger
from fedsprig_server.library import Entry, Library, Run


def publish(library: Library, base: Base, task: str) -> None:
    """Add the entry of a task whose published arm is done; does nothing where that has happened.

    Raises:
        LibraryError: Another entry has the task's name.
    """
    described, done = library.run(task), library.run(f"{task}.{PUBLISHED.name}")
    if described is None or done is None or done.phase != "done":
        return
    lineage = {
        "neighbours": described.state["neighbours"],
        "arm": PUBLISHED.name,
        "run": done.name,
        "adapter": done.state["adapter"],
    }
    if any(
        entry.name == task and entry.lineage == lineage for entry in library.entries(base.digest)
    ):
        return
    ledger = Ledger.from_json(done.state["ledger"])
    first, last = ledger.at(0), ledger.at(done.round)
    scores = learned_scores(library, base, described, done)
    library.add_entry(
        Entry(
            name=task,
            base=base.digest,
            plan=base.plan.digest,
            method=PUBLISHED.name,
            sketch=described.state["sketch"],
            scores=library.blobs.put(scores.to_bytes()),
            masks=dict(done.state["masks"]),
            adapter=done.state["adapter"],
            metrics={
                # A round needs one good answer, and that says how good the state before it was.
                "accuracy_after_cut": statistics.fmean(first.values()),
                "accuracy": statistics.fmean(last.values()),
                "devices": float(len(last)),
            },
            lineage=lineage,
            created=time.time(),
        )
    )


def learned_scores(library: Library, base: Base, described: Run, done: Run) -> ScoreSet:
    """The score mask, with the kept units re-scored on the network that the devices trained.

    A device sees only the units that it keeps. In each group its scores are brought to the length
    that the score mask has on the same units, so that kept and dropped units stay on one scale; a
    unit's new score is the mean over the devices that keep it.
    """
    prior = ScoreSet.from_bytes(
        library.blobs.get(described.state["scores"][PUBLISHED.name]), base.plan
    ).normalised()
    total = {name: np.zeros_like(values, np.float64) for name, values in prior.groups.items()}
    count = {name: np.zeros(len(values)) for name, values in prior.groups.items()}
    for device, blob in sorted(done.state["scores"].items()):
        mask = Mask.from_bytes(library.blobs.get(done.state["masks"][device]), base.plan)
        own = ScoreSet.from_bytes(library.blobs.get(blob), shrink_plan(base.plan, mask))
        for name, kept in mask.groups.items():
            length = float(np.linalg.norm(own.groups[name]))
            if length > 0:
                scale = float(np.linalg.norm(prior.groups[name][kept])) / length
                total[name][kept] += scale * own.groups[name]
                count[name][kept] += 1
    return ScoreSet(
        {
            name: np.where(
                count[name] > 0, total[name] / np.maximum(count[name], 1), prior.groups[name]
            ).astype(np.float32)
            for name in prior.groups
        }
    )
