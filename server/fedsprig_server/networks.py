"""The sub-networks of one arm: what is sent to each device, and sent again to one that lost it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from fedsprig.artifacts.digest import state_digest
from fedsprig.errors import (
    DigestMismatchError,
    FedsprigError,
    MissingNetworkError,
    MissingPartError,
)
from fedsprig.subnetwork import AdapterConfig, pack_subnetwork
from fedsprig.updates import decode_state, encode_state
from fedsprig.wire import INSTALL, Envelope, parse
from fedsprig.wire import device_pb2 as pb
from fedsprig_server.aggregation import Contribution
from fedsprig_server.base import Base
from fedsprig_server.cohort import Cut
from fedsprig_server.cohort_state import CohortState
from fedsprig_server.config import ServerConfig
from fedsprig_server.ledger import Ledger
from fedsprig_server.replies import Installed, head_from_means, read_installed
from fedsprig_server.scheduler import Answer, Ask
from fedsprig_server.transport import Request

Array = NDArray[Any]
Sent = dict[str, tuple[str, dict[str, Array], bytes]]
"""Device -> digest, decoded values and bytes of its adapter."""
AboutAdapter = pb.RoundRequest | pb.EvaluateRequest | pb.AttentionRequest | pb.CutRequest
"""Requests that an adapter goes with."""
LOST = tuple(
    f"{error.__name__}: " for error in (MissingNetworkError, MissingPartError, DigestMismatchError)
)
"""How a refusal begins that a whole package mends."""


class Networks:
    """Packages by device.

    Attributes:
        run: The arm's run, under which devices keep their package.
        cuts: The mask of every device that has one.
    """

    def __init__(
        self,
        run: str,
        cuts: Mapping[str, Cut],
        base: Base,
        config: ServerConfig,
        *,
        adapter: AdapterConfig,
        num_classes: int,
        healed: Mapping[str, Mapping[str, Array]] = MappingProxyType({}),
    ) -> None:
        """Take what is fixed for the arm.

        Args:
            run: The arm's run.
            cuts: The mask of every device that has one.
            base: What networks are cut from.
            config: The settings.
            adapter: What devices train.
            num_classes: Of the task.
            healed: Weights that take the place of the base's own, by mask digest; networks that
                were not healed are left out.
        """
        self.run = run
        self.cuts = cuts
        self._base = base
        self._config = config
        self._adapter = adapter
        self._num_classes = num_classes
        self._healed = healed
        self._packages: dict[tuple[str, bool, bool], bytes] = {}
        self._contents: dict[str, str] = {}

    def message(self, device: str, *, with_plan: bool, with_weights: bool = True) -> Envelope:
        """The package of a device; devices with equal masks share the bytes.

        Args:
            device: Its name.
            with_plan: Leave the plan out where the device is known to hold it.
            with_weights: Leave the weights out where it holds the base model. What was healed
                cannot be cut from that, and goes along.
        """
        wanted = pb.InstallRequest(run=self.run, seed=self._config.seed)
        package = self._package(self.cuts[device], with_plan, with_weights)
        return Envelope(INSTALL, wanted.SerializeToString(), package)

    def _package(self, cut: Cut, with_plan: bool, with_weights: bool) -> bytes:
        with_weights = with_weights or cut.stratum in self._healed
        key = (cut.stratum, with_plan, with_weights)
        if key not in self._packages:
            if with_weights:
                package = pack_subnetwork(
                    self._base.plan,
                    cut.mask,
                    self._base.state,
                    num_classes=self._num_classes,
                    adapter=self._adapter,
                    codec=self._config.weights_codec,
                    with_plan=with_plan,
                    own=self._healed.get(cut.stratum),
                )
            else:
                whole = self._package(cut, with_plan, True)
                package = self._base.shorten(whole, with_plan=with_plan)
            self._packages[key] = package
        return self._packages[key]

    def meant(self, device: str) -> str:
        """What a message names a device's network by, where it has another one from time to time.

        Empty where networks stay as they are.
        """
        return self.cuts[device].stratum if self._config.pruning is not None else ""

    def content(self, device: str) -> str:
        """Digest of the weights in a device's package, as they are decoded."""
        cut = self.cuts[device]
        if cut.stratum not in self._contents:
            package = self._package(cut, False, True)
            weights = decode_state(parse(pb.SubNetwork, package).weights)
            self._contents[cut.stratum] = state_digest(weights)
        return self._contents[cut.stratum]

    def read(self, device: str, answer: Envelope) -> Installed:
        """Check the answer of a device to its package; errors as in :func:`read_installed`."""
        return read_installed(
            answer,
            self._base.plan,
            self.cuts[device].index,
            num_classes=self._num_classes,
            statistics=not self._adapter.local_statistics,
        )

    def start(
        self,
        installed: Mapping[str, Installed],
        pictures: Mapping[str, float],
    ) -> CohortState:
        """The state right after the cut: base or healed values, class means, own statistics.

        No statistics where devices keep theirs.
        """
        heads: dict[str, dict[str, Array]] = {}
        for stratum in sorted({self.cuts[device].stratum for device in installed}):
            replies = [r for device, r in installed.items() if self.cuts[device].stratum == stratum]
            heads[stratum] = head_from_means(self._base, replies)
        start = CohortState.start(
            self._base,
            self._adapter,
            heads,
            num_classes=self._num_classes,
            healed={
                cut.stratum: (cut.index, self._healed[cut.stratum])
                for cut in self.cuts.values()
                if cut.stratum in self._healed
            },
        )
        found = {device: reply.statistics for device, reply in installed.items()}
        return self.with_statistics(start, found, pictures)

    def with_statistics(
        self,
        state: CohortState,
        found: Mapping[str, Mapping[str, Array]],
        pictures: Mapping[str, float],
    ) -> CohortState:
        """A state with the statistics that devices have measured, pooled by width."""
        statistics = [
            self.contribution(device, measured, pictures[device])
            for device, measured in found.items()
        ]
        state, _ = state.averaged(statistics, head=self._base.plan.head, sharing=0.0)
        return state

    def messages(
        self, kind: str, number: int, sent: Sent, about: Callable[[str], AboutAdapter]
    ) -> dict[str, Envelope]:
        """A message with the adapter to every device that it was made for.

        Args:
            kind: Of the messages.
            number: Of the round.
            sent: From :meth:`sent`.
            about: The request to a device; its run, round and adapter are filled in.
        """
        messages = {}
        for device, (adapter, _, blob) in sent.items():
            request = about(device)
            request.run, request.round, request.adapter = self.run, number, adapter
            messages[device] = Envelope(kind, request.SerializeToString(), blob)
        return messages

    def sent(self, state: CohortState) -> Sent:
        """Digest, decoded values and bytes of the adapter for every device.

        A device of a width that nobody installed is left out: nothing was started for it.

        An update is the change against the *decoded* values: what the codec lost on the way down is
        not added back.
        """
        made: dict[str, tuple[str, dict[str, Array], bytes]] = {}
        started = {device: part for device, part in self.cuts.items() if part.stratum in state.body}
        for part in started.values():
            if part.stratum not in made:
                blob = encode_state(
                    state.for_device(part.index, part.stratum), self._config.adapter_codec
                )
                decoded = decode_state(blob)
                made[part.stratum] = (state_digest(decoded), decoded, blob)
        return {device: made[part.stratum] for device, part in started.items()}

    def contribution(
        self, device: str, state: Mapping[str, Array], pictures: float
    ) -> Contribution:
        """What a device adds to a mean, at its width; it counts by its pictures."""
        cut = self.cuts[device]
        return Contribution(
            device=device,
            weight=float(pictures),
            state=state,
            index=cut.index,
            stratum=cut.stratum,
        )

    def answered(
        self, ask: Ask, device_of: Mapping[int, str], ledger: Ledger
    ) -> Generator[Ask, list[Answer], list[Answer]]:
        """Ask; devices that have lost their network get it again, once, and are asked again.

        Args:
            ask: What devices are asked that should have a network.
            device_of: Names by node.
            ledger: Told of what is sent again.
        """
        answers = yield ask
        lost = [item.node for item in answers if item.refusal.startswith(LOST)]
        if not lost:
            return answers
        # Who lost its network may have lost the plan too.
        sent = {node: self.message(device_of[node], with_plan=True) for node in lost}
        packages = [Request(node, message) for node, message in sent.items()]
        ready = set()
        for answer in (yield Ask(packages, ask.deadline_seconds)):
            if answer.envelope is None:
                continue
            device, message = device_of[answer.node], sent[answer.node]
            try:
                reply = self.read(device, answer.envelope)
            except FedsprigError:
                continue  # its first refusal stands
            ledger.exchanged(device, message, answer.envelope)
            ledger.worked(device, INSTALL, reply.seconds)
            ready.add(answer.node)
        again = [request for request in ask.requests if request.node in ready]
        later: dict[int, Answer] = {}
        if again:
            second = yield Ask(again, ask.deadline_seconds, good=ask.good)
            later = {answer.node: answer for answer in second}
        return [later.get(item.node, item) for item in answers]
