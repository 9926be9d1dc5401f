"""Healing: what a mask cuts learns again to say what the base says, before it is sent.

A network is healed once for each mask, in threads beside the one that talks with devices, and is a
blob before anything is sent, so that a server which was killed sends the same bytes again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsprig.artifacts import pack, unpack
from fedsprig.bases import belongs_to_base
from fedsprig.graph import materialize
from fedsprig.masks import Mask
from fedsprig.preparing import heal
from fedsprig.seeds import derive_seed
from fedsprig.training import read
from fedsprig_server.base import Base
from fedsprig_server.config import StartConfig
from fedsprig_server.library import Library
from fedsprig_server.picture_memory import drawn, joined, most_pictures
from fedsprig_server.scheduler import Answer, Ask

Array = NDArray[Any]
WORKERS = 2
PAUSE_SECONDS = 0.2
MOST_PICTURES = 8192
"""That are held in memory; drawn evenly where the operator gives more."""
MOST_BYTES = 1 << 30
"""Of these pictures; large ones are fewer."""


class Healer:
    """Heals the networks of all tasks of a server, each mask once."""

    def __init__(self, base: Base, library: Library, start: StartConfig, *, seed: int) -> None:
        """Take what is fixed; pictures are read when the first network is cut.

        Args:
            base: What networks are cut from, and what they learn from.
            library: Where healed weights are kept.
            start: How long, and on which pictures.
            seed: Of the server.
        """
        self._base, self._library, self._start, self._seed = base, library, start, seed
        self._pool = ThreadPoolExecutor(
            WORKERS, "healing", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._begun: dict[str, Future[str]] = {}
        self._lock = Lock()
        self._images: Tensor | None = None

    def __enter__(self) -> Healer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def heal(self, masks: Iterable[str]) -> Generator[Ask, list[Answer], dict[str, str]]:
        """Heal what these masks cut; other tasks go on meanwhile.

        Args:
            masks: Names of their blobs. A mask that keeps everything is left out.

        Returns:
            Names of the blobs of healed weights, by mask.

        Raises:
            DataError: Pictures that cannot be read.
            TrainingError: Pictures that nothing can be learnt from.
        """
        found = {}
        for name in sorted(set(masks)):
            mask = Mask.from_bytes(self._library.blobs.get(name), self._base.plan)
            if mask.flat.all():
                continue
            if name not in self._begun:
                self._begun[name] = self._pool.submit(self._healed, mask)
            found[name] = self._begun[name]
        while not all(future.done() for future in found.values()):
            yield Ask([], PAUSE_SECONDS)
        return {name: future.result() for name, future in found.items()}

    def _healed(self, mask: Mask) -> str:
        """Cut, heal and keep; the same bytes for the same mask and settings."""
        base, start = self._base, self._start
        small = materialize(base.module, base.plan, mask)
        seed = derive_seed(self._seed, "heal", mask.digest)
        heal(small, mask, base.module, base.plan, self._pictures(), start.healing, seed=seed)
        weights = {
            name: value.numpy()
            for name, value in small.state_dict().items()
            if belongs_to_base(name, base.card.head)
        }
        return self._library.blobs.put(pack(weights))

    def _pictures(self) -> Tensor:
        """The operator's pictures as the base takes them, for all threads the same tensor."""
        with self._lock:
            if self._images is None:
                sets = [read("npz", path) for path in self._start.pictures]
                card = self._base.card
                most = min(MOST_PICTURES, most_pictures(card, MOST_BYTES))
                seed = derive_seed(self._seed, "heal pictures")
                self._images = joined(drawn(sets, most, seed=seed), card)
            return self._images


def healed_weights(
    library: Library, healed: Mapping[str, str], masks: Iterable[str]
) -> dict[str, dict[str, Array]]:
    """The weights of the networks that were healed, by mask.

    Args:
        library: Where they are kept.
        healed: From :meth:`Healer.heal`.
        masks: Those that are needed.
    """
    return {
        name: unpack(library.blobs.get(healed[name]))[0]
        for name in sorted(set(masks))
        if name in healed
    }
