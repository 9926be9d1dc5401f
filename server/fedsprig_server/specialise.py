"""One task from its devices' sketches to a published library entry, once for every arm.

Each step is committed to the library before the next one starts. A server that was killed finds the
last committed step and goes on from there; the devices answer a repeated request as they answered
it the first time, so the result is the same.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsprig.artifacts.digest import digest, state_digest
from fedsprig.errors import RunError
from fedsprig.graph import kept_index, shrink_plan
from fedsprig.masks import ScoreSet
from fedsprig.subnetwork import AdapterConfig, pack_subnetwork
from fedsprig.tasks import TaskSketch
from fedsprig.updates import decode_state, encode_state
from fedsprig.wire import DESCRIBE, EVALUATE, INSTALL, ROUND, Envelope
from fedsprig.wire import device_pb2 as pb
from fedsprig_server.aggregation import Contribution
from fedsprig_server.base import Base
from fedsprig_server.cohort import Cohort, Cut
from fedsprig_server.cohort_state import Aggregation, CohortState
from fedsprig_server.config import ServerConfig
from fedsprig_server.ledger import Ledger
from fedsprig_server.library import Library, Run
from fedsprig_server.lobby import Member
from fedsprig_server.one_shot import arm_scores, cut, find
from fedsprig_server.replies import (
    Installed,
    head_from_means,
    read_evaluation,
    read_installed,
    read_sketch,
    read_update,
)
from fedsprig_server.scheduler import Answer, Ask, Flow

Array = NDArray[Any]


class Specialisation:
    """The flow of one task; :meth:`run` is what the scheduler drives."""

    def __init__(
        self,
        task: str,
        members: Sequence[Member],
        base: Base,
        library: Library,
        config: ServerConfig,
        *,
        probe: bytes,
    ) -> None:
        self.task = task
        rounds = config.rounds
        self._cohort = Cohort(
            task, members, quorum=rounds.quorum, deadline_seconds=rounds.deadline_seconds
        )
        self._members = self._cohort.members
        self._base = base
        self._library = library
        self._config = config
        self._probe = probe
        self._num_classes = len(self._cohort.classes)
        self._holding = {m.device for m in members if base.plan.digest in m.plans}

    def run(self) -> Flow:
        """Describe, then every arm, each to its end."""
        if (run := self._library.run(self.task)) is None:
            run = yield from self._describe()
        sketch = TaskSketch.from_bytes(self._library.blobs.get(run.state["sketch"]))
        for arm in self._config.arms:
            done = self._library.run(self.arm_name(arm))
            if done is None or done.phase != "done":
                yield from self._arm(arm, sketch, done)

    def arm_name(self, arm: str) -> str:
        """The run of an arm in the library."""
        return f"{self.task}.{arm}"

    def _describe(self) -> Generator[Ask, list[Answer], Run]:
        """Collect the devices' sketches, merge them and find the neighbours."""
        ledger = Ledger()
        probe = digest(self._probe)
        wanted = pb.DescribeRequest(probe=probe, noise=self._config.sketch_noise)
        message = Envelope(DESCRIBE, wanted.SerializeToString(), self._probe)
        answers = yield from self._cohort.ask(
            dict.fromkeys(self._members, message),
            ledger,
            lambda _, answer: read_sketch(answer, classes=self._cohort.classes, probe=probe),
        )
        sketches = []
        for device, (sketch, seconds) in answers.items():
            ledger.worked(device, DESCRIBE, seconds)
            sketches.append(sketch)
            self._holding.add(device)  # the probe brought the plan
        sketch = TaskSketch.merge(sketches)
        started = time.perf_counter()
        found = find(sketch, self._library, self._base, self._config.selection)
        neighbours = [neighbour for _, neighbour in found]
        scores = {
            arm: made
            for arm in self._config.arms
            if (
                made := arm_scores(
                    arm,
                    sketch,
                    neighbours,
                    self._base,
                    self._config.selection,
                    seed=self._config.seed,
                    task=self.task,
                )
            )
            is not None
        }
        put = self._library.blobs.put
        run = Run(
            self.task,
            "described",
            0,
            {"members": {name: dict(m.limits) for name, m in self._members.items()}},
            {
                "sketch": put(sketch.to_bytes()),
                "scores": {arm: put(made.to_bytes()) for arm, made in scores.items()},
                "neighbours": [
                    {"name": near.name, "similarity": near.similarity, "weight": near.weight}
                    for near, _ in found
                ],
                "server_seconds": time.perf_counter() - started,
                "ledger": ledger.to_json(),
            },
        )
        self._library.save_run(run)
        return run

    def _arm(self, arm: str, sketch: TaskSketch, done: Run | None) -> Flow:
        """Cut, install, train and evaluate one arm, from wherever it was left."""
        name = self.arm_name(arm)
        adapter = self._config.adapter
        if arm == "full_finetune":
            adapter = AdapterConfig(kind="full", seed=adapter.seed)
        started = time.perf_counter()
        cuts = self._cut(arm)
        cut_seconds = time.perf_counter() - started
        ledger = Ledger.from_json(done.state["ledger"]) if done else Ledger()
        installed = yield from self._install(name, cuts, adapter, ledger)
        latest = self._library.latest_round(name)
        if latest is None:
            state = self._start(adapter, cuts, installed)
            first = 0
            self._commit(name, arm, 0, state, cuts, ledger, {"server_seconds": cut_seconds})
        else:
            first = latest.round
            state = CohortState.from_bytes(self._library.blobs.get(latest.adapter))
            ledger = Ledger.from_json(latest.state["ledger"])
        for number in range(first + 1, self._config.rounds.count + 1):
            state, metrics = yield from self._round(name, arm, number, state, cuts, ledger)
            self._commit(name, arm, number, state, cuts, ledger, metrics)
        scores = yield from self._evaluate(name, arm, state, cuts, ledger)
        final = Run(
            name,
            "done",
            self._config.rounds.count,
            {"arm": arm, "task": self.task},
            {
                "ledger": ledger.to_json(),
                "adapter": self._library.blobs.put(state.to_bytes()),
                "masks": self._put_masks(cuts),
                "scores": scores,
                "server_seconds": cut_seconds,
            },
        )
        self._library.save_run(final)

    def _cut(self, arm: str) -> dict[str, Cut]:
        """The mask of every device; equal budgets share one."""
        described = self._library.run(self.task)
        if described is None:
            raise RunError(f"task {self.task!r} was never described: start it again")
        plan = self._base.plan
        stored = described.state["scores"].get(arm)
        scores = ScoreSet.from_bytes(self._library.blobs.get(stored), plan) if stored else None
        made: dict[str, Cut] = {}
        cuts = {}
        for device, member in self._members.items():
            key = repr(member.budget)
            if key not in made:
                mask = cut(scores, self._base, member.budget, self._config.selection)
                made[key] = Cut(mask, kept_index(plan, mask))
            cuts[device] = made[key]
        return cuts

    def _install(
        self, name: str, cuts: Mapping[str, Cut], adapter: AdapterConfig, ledger: Ledger
    ) -> Generator[Ask, list[Answer], dict[str, Installed]]:
        """Send every device its sub-network; class means and statistics come back."""
        packages: dict[tuple[str, bool], bytes] = {}
        messages = {}
        for device in self._members:
            with_plan = device not in self._holding
            key = (cuts[device].stratum, with_plan)
            if key not in packages:
                packages[key] = pack_subnetwork(
                    self._base.plan,
                    cuts[device].mask,
                    self._base.state,
                    num_classes=self._num_classes,
                    adapter=adapter,
                    codec=self._config.weights_codec,
                    with_plan=with_plan,
                )
            wanted = pb.InstallRequest(run=name, seed=self._config.seed)
            messages[device] = Envelope(INSTALL, wanted.SerializeToString(), packages[key])
        installed = yield from self._cohort.ask(
            messages,
            ledger,
            lambda device, answer: read_installed(
                answer, self._base.plan, cuts[device].index, num_classes=self._num_classes
            ),
        )
        for device, reply in installed.items():
            ledger.worked(device, INSTALL, reply.seconds)
        return installed

    def _start(
        self,
        adapter: AdapterConfig,
        cuts: Mapping[str, Cut],
        installed: Mapping[str, Installed],
    ) -> CohortState:
        """The state right after the cut: base values, head from class means, own statistics."""
        heads: dict[str, dict[str, Array]] = {}
        for stratum in sorted({cuts[device].stratum for device in installed}):
            replies = [r for device, r in installed.items() if cuts[device].stratum == stratum]
            heads[stratum] = head_from_means(self._base, replies)
        start = CohortState.start(self._base, adapter, heads, num_classes=self._num_classes)
        statistics = [
            self._contribution(device, reply.statistics, cuts)
            for device, reply in installed.items()
        ]
        return start.averaged(statistics, head=self._base.plan.head, sharing=0.0)

    def _round(
        self,
        name: str,
        arm: str,
        number: int,
        state: CohortState,
        cuts: Mapping[str, Cut],
        ledger: Ledger,
    ) -> Generator[Ask, list[Answer], tuple[CohortState, dict[str, float]]]:
        """Send the adapter, collect updates, aggregate."""
        rounds, full = self._config.rounds, arm == "full_finetune"
        sent = self._sent(state, cuts)
        messages = {}
        for device, (adapter_digest, _, blob) in sent.items():
            wanted = pb.RoundRequest(
                run=name,
                round=number,
                adapter=adapter_digest,
                codec="float16" if full else self._config.update_codec,
                evaluate=True,
                seed=self._config.seed,
                training=pb.LocalTraining(
                    epochs=rounds.epochs,
                    steps=rounds.steps,
                    batch_size=rounds.batch_size,
                    learning_rate=rounds.full_learning_rate if full else rounds.learning_rate,
                    momentum=rounds.momentum,
                    weight_decay=rounds.weight_decay,
                    schedule=rounds.schedule,
                    augment=rounds.augment,
                ),
            )
            messages[device] = Envelope(ROUND, wanted.SerializeToString(), blob)
        answers = yield from self._cohort.ask(
            messages,
            ledger,
            lambda device, answer: (
                *read_update(answer, sent[device][1], sent[device][0]),
                len(answer.blob),
            ),
        )
        contributions, losses = [], []
        for device, (reply, trained, size) in answers.items():
            contributions.append(self._contribution(device, trained, cuts))
            ledger.worked(device, ROUND, reply.seconds)
            ledger.reached(device, reply.evaluation)
            ledger.updated(device, size)
            losses.append(reply.loss)
        how: Aggregation = "fixed" if full else self._config.aggregation
        state = state.averaged(
            contributions, head=self._base.plan.head, how=how, sharing=rounds.sharing
        )
        return state, {"loss": float(np.mean(losses)), "devices": float(len(losses))}

    def _evaluate(
        self,
        name: str,
        arm: str,
        state: CohortState,
        cuts: Mapping[str, Cut],
        ledger: Ledger,
    ) -> Generator[Ask, list[Answer], dict[str, str]]:
        """The last figures; for a task that will be published also the devices' unit scores."""
        scorer = self._config.scorer if arm == "one_shot" and self._config.publish else ""
        messages = {}
        for device, (adapter_digest, _, blob) in self._sent(state, cuts).items():
            wanted = pb.EvaluateRequest(
                run=name,
                round=self._config.rounds.count,
                adapter=adapter_digest,
                scorer=scorer,
                seed=self._config.seed,
            )
            messages[device] = Envelope(EVALUATE, wanted.SerializeToString(), blob)

        def read(device: str, answer: Envelope) -> tuple[pb.EvaluateReply, bytes]:
            if scorer:
                ScoreSet.from_bytes(answer.blob, shrink_plan(self._base.plan, cuts[device].mask))
            return read_evaluation(answer), answer.blob

        answers = yield from self._cohort.ask(messages, ledger, read)
        scores = {}
        for device, (reply, blob) in answers.items():
            ledger.worked(device, EVALUATE, reply.seconds)
            ledger.reached(device, reply.evaluation)
            if scorer:
                scores[device] = self._library.blobs.put(blob)
        return scores

    def _sent(
        self, state: CohortState, cuts: Mapping[str, Cut]
    ) -> dict[str, tuple[str, dict[str, Array], bytes]]:
        """Digest, decoded values and bytes of the adapter for every device.

        An update is the change against the *decoded* values: what the codec lost on the way down is
        not added back.
        """
        made: dict[str, tuple[str, dict[str, Array], bytes]] = {}
        for part in cuts.values():
            if part.stratum not in made:
                blob = encode_state(
                    state.for_device(part.index, part.stratum), self._config.adapter_codec
                )
                decoded = decode_state(blob)
                made[part.stratum] = (state_digest(decoded), decoded, blob)
        return {device: made[part.stratum] for device, part in cuts.items()}

    def _contribution(
        self, device: str, state: Mapping[str, Array], cuts: Mapping[str, Cut]
    ) -> Contribution:
        return Contribution(
            device=device,
            weight=float(self._members[device].pictures),
            state=state,
            index=cuts[device].index,
            stratum=cuts[device].stratum,
        )

    def _put_masks(self, cuts: Mapping[str, Cut]) -> dict[str, str]:
        return {
            device: self._library.blobs.put(part.mask.to_bytes()) for device, part in cuts.items()
        }

    def _commit(
        self,
        name: str,
        arm: str,
        number: int,
        state: CohortState,
        cuts: Mapping[str, Cut],
        ledger: Ledger,
        metrics: dict[str, float],
    ) -> None:
        """Make a round durable before the next one starts."""
        if number == 0:
            spec = {"arm": arm, "task": self.task}
            row = Run(
                name,
                "training",
                0,
                spec,
                {"masks": self._put_masks(cuts), "ledger": ledger.to_json()},
            )
            self._library.save_run(row)
        self._library.commit_round(
            name, number, state.to_bytes(), metrics, {"ledger": ledger.to_json()}
        )
