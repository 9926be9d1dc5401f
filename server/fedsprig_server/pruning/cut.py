"""One cut of a cohort: ask for attention, decide, and have every device cut its own network.

It is part of the round that it follows, and committed with it: a server that is killed meanwhile
does the round again, and devices that had cut already are sent the larger network once more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from fedsprig.graph import index_within, shrink_plan
from fedsprig.masks import Budget, Mask
from fedsprig.pruning.aap.thresholds import Weighting, layer_count
from fedsprig.subnetwork import AdapterConfig
from fedsprig.wire import ATTENTION, CUT
from fedsprig.wire import device_pb2 as pb
from fedsprig.wire.budgets import from_wire, to_wire
from fedsprig_server.attendance import Attendance
from fedsprig_server.base import Base
from fedsprig_server.cohort import Cut
from fedsprig_server.cohort_state import CohortState, Narrowing
from fedsprig_server.config import PruningConfig, ServerConfig
from fedsprig_server.ledger import Ledger
from fedsprig_server.library import Library, Run
from fedsprig_server.networks import Networks
from fedsprig_server.pruning.narrower import Narrower, Width, falls_of, narrow
from fedsprig_server.pruning.pool import Share
from fedsprig_server.pruning.sizes import Sizes
from fedsprig_server.replies import read_attention, read_cut
from fedsprig_server.scheduler import Answer, Ask


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Shrinking:
    """The cuts of one arm.

    Attributes:
        here: Who takes part.
        pictures: Of every device.
        base: The base model.
        library: Where masks go.
        config: The server's settings.
        pruning: Those that say when and how far.
        sizes: What limits are measured by.
        adapter: What the arm trains.
        num_classes: Classes of the task.
    """

    here: Attendance
    pictures: Mapping[str, float]
    base: Base
    library: Library
    config: ServerConfig
    pruning: PruningConfig
    sizes: Sizes
    adapter: AdapterConfig
    num_classes: int

    def cut(
        self, number: int, run: Run, state: CohortState, networks: Networks, ledger: Ledger
    ) -> Generator[Ask, list[Answer], tuple[CohortState, Networks, dict[str, Any]]]:
        """Cut the networks of all devices.

        Args:
            number: The round that has just ended.
            run: The arm's run as it was before that round.
            state: After the round.
            networks: That it was trained in.
            ledger: Told of all that is sent.

        Returns:
            The state in the smaller networks, those networks, and what changes in the run's state:
            the masks, and a line more of ``cuts``.
        """
        done = list(run.state.get("cuts", []))
        # Those of devices that are away too: they may come back.
        masks = {
            device: Mask.from_bytes(self.library.blobs.get(key), self.base.plan)
            for device, key in run.state["masks"].items()
        }
        total, accuracy = yield from self._ask_for_attention(number, state, networks, ledger)
        widest = reduce(Mask.__or__, masks.values())
        attention = total.attention(widest)
        scale = layer_count(self.base.plan) * float(np.concatenate([*attention.values()]).mean())
        scale = float(done[0]["scale"]) if done else scale
        budgets = {
            device: from_wire(to_wire(limits), self.sizes.plan)
            for device, limits in run.spec["limits"].items()
        }
        falls = falls_of(attention, self.base.plan, widest, self._weighting(budgets), scale)
        keys = {
            device: (mask.digest, repr(budgets[device])) for device, mask in sorted(masks.items())
        }
        widths = {
            keys[device]: Width(mask, self.sizes.limits(budgets[device], len(done) + 1))
            for device, mask in masks.items()
        }
        found = dict(zip(widths, narrow([*widths.values()], falls, self.sizes), strict=True))
        after = {device: found[key] for device, key in keys.items()}
        smaller = self._networks(networks.run, after)
        state = self._narrowed(state, masks, after)
        state = yield from self._have_cut(number, state, smaller, ledger)
        line = {
            "round": number,
            "scale": scale,
            "accuracy": accuracy,
            "widths": [self._line(key, item, keys) for key, item in found.items()],
        }
        put = self.library.blobs.put
        changes = {
            "masks": {device: put(item.mask.to_bytes()) for device, item in after.items()},
            "cuts": [*done, line],
        }
        return state, smaller, changes

    def _ask_for_attention(
        self, number: int, state: CohortState, networks: Networks, ledger: Ledger
    ) -> Generator[Ask, list[Answer], tuple[Share, dict[str, float]]]:
        """The cohort's sums, and every device's accuracy before the cut."""
        messages = networks.messages(
            ATTENTION,
            number,
            networks.sent(state),
            lambda device: pb.AttentionRequest(
                network=networks.meant(device),
                power=self.pruning.power,
                form=self.pruning.form,
                pictures=self.pruning.pictures,
                seed=self.config.seed,
            ),
        )
        answers = yield from self.here.ask(
            messages,
            ledger,
            lambda device, answer: read_attention(
                answer,
                shrink_plan(self.base.plan, networks.cuts[device].mask),
                pictures=min(self.pruning.pictures, int(self.pictures[device])),
            ),
            networks,
        )
        shares, accuracy = [], {}
        for device, (reply, sums) in answers.items():
            ledger.worked(device, ATTENTION, reply.seconds)
            accuracy[device] = reply.evaluation.accuracy
            shares.append(Share.of(networks.cuts[device].mask, sums, reply.pictures))
        return Share.total(shares), accuracy

    def _have_cut(
        self, number: int, state: CohortState, networks: Networks, ledger: Ledger
    ) -> Generator[Ask, list[Answer], CohortState]:
        """Every device cuts its network; the state gets the statistics that it measures there."""
        messages = networks.messages(
            CUT,
            number,
            networks.sent(state),
            lambda device: pb.CutRequest(
                mask=networks.cuts[device].mask.to_bytes(), content=networks.content(device)
            ),
        )
        answers = yield from self.here.ask(
            messages,
            ledger,
            lambda device, answer: read_cut(
                answer,
                self.sizes.plan,
                networks.cuts[device].index,
                statistics=not self.adapter.local_statistics,
            ),
            networks,
        )
        for device, (_, seconds) in answers.items():
            ledger.worked(device, CUT, seconds)
        measured = {device: found for device, (found, _) in answers.items()}
        return networks.with_statistics(state, measured, self.pictures)

    def _networks(self, run: str, after: Mapping[str, Narrower]) -> Networks:
        masks = {item.mask.digest: item.mask for item in after.values()}
        made = {
            key: Cut(mask, self.adapter.index(self.base.plan, mask)) for key, mask in masks.items()
        }
        return Networks(
            run,
            {
                device: made[item.mask.digest]
                for device, item in after.items()
                if device in self.here.members
            },
            self.base,
            self.config,
            adapter=self.adapter,
            num_classes=self.num_classes,
        )

    def _narrowed(
        self, state: CohortState, masks: Mapping[str, Mask], after: Mapping[str, Narrower]
    ) -> CohortState:
        """The state, less what is gone.

        Networks of two widths may become the same one: it goes on from that of the two whose
        devices have more pictures, since factors that were trained apart cannot be averaged.
        """
        counts: defaultdict[tuple[str, str], float] = defaultdict(float)
        for device, mask in masks.items():
            counts[mask.digest, after[device].mask.digest] += self.pictures.get(device, 0.0)
        known = {mask.digest: mask for mask in masks.values()}
        known |= {item.mask.digest: item.mask for item in after.values()}
        index = {key: self.adapter.index(self.base.plan, mask) for key, mask in known.items()}
        cuts = {}
        for old, new in sorted(counts, key=lambda pair: (counts[pair], pair)):
            if old in state.body:  # else nobody has started that network
                within = index_within(index[old], index[new])
                cuts[new] = Narrowing(old, index[new], within)  # of two the last one counts
        untrained = CohortState.start(
            self.base, self.adapter, {"": {}}, num_classes=self.num_classes
        )
        return state.narrowed(cuts, untrained.body[""])

    def _weighting(self, budgets: Mapping[str, Budget]) -> Weighting:
        if self.pruning.weighting != "budget":
            return self.pruning.weighting
        limited = any(budget.macs is not None for budget in budgets.values())
        return "macs" if limited else "parameters"

    def _line(
        self, key: tuple[str, str], item: Narrower, keys: Mapping[str, tuple[str, str]]
    ) -> dict[str, Any]:
        size = self.sizes.of(item.mask)
        return {
            "devices": [device for device, own in keys.items() if own == key],
            "threshold": item.threshold,
            "units": size.units,
            "parameters": size.parameters,
            "macs": size.macs,
        }
