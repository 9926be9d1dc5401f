"""A library for another set of weights of the same network: what a prepared base goes on with.

The pictures behind most entries lie on devices, so that nobody can score those tasks anew. What is
known of a task is in the units of the plan, and the probe that sketches come from is a network of
its own: both hold for a base that was prepared from the one before, unit by unit.
"""

from __future__ import annotations

from dataclasses import replace

from fedsprig.errors import LibraryError
from fedsprig_server.base import Base
from fedsprig_server.library import BaseRecord, Entry, Library


def rebase(source: Library, target: Library, base: Base, *, origin: str = "") -> list[Entry]:
    """Copy a library's entries to another base; the same call again does nothing.

    Sketches, scores and masks are kept. Adapters and other trained weights are left out: they were
    trained beside the weights of the other base.

    Args:
        source: Where the entries are.
        target: Where they go; may hold other bases, and may not hold entries of these names.
        base: Whose entries they become.
        origin: How the digest of the base begins that they are of; needed where the source has
            several of this network.

    Returns:
        The entries as they are in the target, in the source's order.

    Raises:
        LibraryError: The source has no base of this network, or several; or a name is taken.
        ProbeMismatchError: The target has entries of this base by another probe.
    """
    record = _origin(source.bases(), base, origin)
    if record.digest == base.digest:
        raise LibraryError(
            "these weights are the library's own base: give those that it was prepared to"
        )

    entries = source.entries(record.digest)
    taken = {entry.name for entry in target.entries() if entry.base != base.digest}
    if both := sorted(taken & {entry.name for entry in entries}):
        raise LibraryError(
            f"the library has another entry {both[0]!r} already ({len(both)} such names): name "
            "another folder for the new one"
        )

    def copied(blob: str) -> str:
        return target.blobs.put(source.blobs.get(blob))

    target.add_base(
        BaseRecord(base.digest, record.model, copied(record.plan), copied(record.probe))
    )
    made = []
    for entry in entries:
        moved = replace(
            entry,
            base=base.digest,
            sketch=copied(entry.sketch),
            scores=copied(entry.scores),
            masks={label: copied(blob) for label, blob in entry.masks.items()},
            adapter=None,
            lineage={**entry.lineage, "scored_on": record.digest},
        )
        target.add_entry(moved)
        made.append(moved)
    return made


def _origin(records: list[BaseRecord], base: Base, wanted: str) -> BaseRecord:
    """The one record of the network's plan."""
    found = [
        record
        for record in records
        if record.plan == base.plan.digest and record.digest.startswith(wanted)
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        named = f" that begins with {wanted!r:.70}" if wanted else ""
        raise LibraryError(
            f"the library has no base{named} of the network {base.plan.model} with pictures of "
            f"{base.card.input_size} pixels: give the model and image size that it was built with"
        )
    digests = ", ".join(record.digest[:12] for record in found)
    raise LibraryError(f"the library has several bases of this network: choose one of {digests}")
