"""One task from its devices' sketches to a published library entry, once for every arm.

Each step is committed to the library before the next one starts. A server that was killed finds the
last committed step and goes on from there; the devices answer a repeated request as they answered
it the first time, so the result is the same.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedsprig.artifacts.digest import digest
from fedsprig.graph import shrink_plan
from fedsprig.subnetwork import AdapterConfig
from fedsprig.tasks import TaskSketch
from fedsprig.wire import DESCRIBE, EVALUATE, INSTALL, ROUND, Envelope, parse
from fedsprig.wire import device_pb2 as pb
from fedsprig_server.aggregation import AGGREGATIONS
from fedsprig_server.arms import ARMS, Arm
from fedsprig_server.attendance import Attendance
from fedsprig_server.base import Base
from fedsprig_server.begin import arm_name, begin_arm, cuts_of, limits_of
from fedsprig_server.cohort_state import CohortState, Truncation
from fedsprig_server.config import ServerConfig
from fedsprig_server.healing import Healer, healed_weights
from fedsprig_server.ledger import Ledger
from fedsprig_server.library import Library, Run
from fedsprig_server.library_evaluation import settled
from fedsprig_server.lobby import Member
from fedsprig_server.networks import Networks
from fedsprig_server.one_shot import arm_scores, search, shared_out
from fedsprig_server.pruning import Shrinking, Sizes
from fedsprig_server.replies import (
    Installed,
    plan_of,
    read_evaluation,
    read_sketch,
    read_update,
)
from fedsprig_server.rerank import reranked
from fedsprig_server.scheduler import Answer, Ask, Flow


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
        expected: int,
        visible: int,
        healer: Healer | None = None,
    ) -> None:
        """Take what is fixed for the task.

        Args:
            task: Its name.
            members: The devices that are here.
            base: What is specialised.
            library: Where neighbours come from and every step goes to.
            config: The settings.
            probe: The package that describes pictures.
            expected: Devices of the task, whether they are here or not.
            visible: How many of the library's entries the task may draw from.
            healer: Heals networks before they are sent; ``None``: they are sent as they are cut.
        """
        self.task = task
        self._here = Attendance(task, members, config.rounds, expected=expected)
        self._pictures = {member.device: float(member.pictures) for member in members}
        self._base = base
        self._library = library
        self._config = config
        self._probe = probe
        self._visible = visible
        self._healer = healer
        self._num_classes = len(self._here.classes)
        self._holding = {m.device for m in members if base.plan.digest in m.plans}
        self._keeping = {m.device for m in members if base.digest in m.bases}
        self._probes: dict[bool, Envelope] = {}
        self._sizes = (
            Sizes(base, config.pruning, config.selection, num_classes=self._num_classes)
            if config.pruning
            else None
        )

    def run(self) -> Flow:
        """Describe, then every arm, each to its end."""
        if (run := self._library.run(self.task)) is None:
            run = yield from self._describe()
        self._here.recognise(limits_of(self.task, self._config.arms, self._library))
        for arm in self._config.arms:
            done = self._library.run(arm_name(self.task, arm))
            if done is None or done.phase != "done":
                yield from self._arm(ARMS[arm], run, done)

    def _describe(self) -> Generator[Ask, list[Answer], Run]:
        """Collect the devices' sketches, merge them and find neighbours, in one or two stages."""
        ledger = Ledger()
        probe, probe_plan = digest(self._probe), plan_of(self._probe, self._base.plan)
        selection = self._config.selection
        wanted = pb.DescribeRequest(
            probe=probe, noise=self._config.sketch_noise, keep=bool(selection.rerank)
        )
        whole = Envelope(DESCRIBE, wanted.SerializeToString(), self._probe)
        answers = yield from self._here.ask(
            {device: self._short(device, whole) for device in self._here.members},
            ledger,
            lambda _, answer: read_sketch(
                answer,
                classes=self._here.classes,
                probe=probe,
                plan=probe_plan,
            ),
            whole=lambda device: whole if device in self._keeping else None,
        )
        sketches = []
        for device, (sketch, seconds) in answers.items():
            ledger.worked(device, DESCRIBE, seconds)
            sketches.append(sketch)
            self._holding.add(device)  # the probe brought the plan
        sketch = TaskSketch.merge(sketches)
        started = time.perf_counter()
        selection = settled(
            self._config.selection, self._library, self._base, visible=self._visible
        )
        index, hits = search(sketch, self._library, self._base, selection, visible=self._visible)
        waited = time.perf_counter()
        if selection.rerank:
            hits = yield from reranked(
                hits,
                index,
                sketch,
                selection,
                probe=self._probe,
                here=self._here,
                pictures=self._pictures,
                ledger=ledger,
            )
        started += time.perf_counter() - waited  # the server's own seconds are counted
        found = shared_out(index, hits, self._library, self._base, selection)
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
                    selection,
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
            {"members": sorted(self._here.members)},
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

    def _short(self, device: str, whole: Envelope) -> Envelope:
        """The probe's message without what the device holds: equal devices share the bytes."""
        if device not in self._keeping:
            return whole
        with_plan = device not in self._holding
        if with_plan not in self._probes:
            package = self._base.shorten(whole.blob, with_plan=with_plan)
            wanted = parse(pb.DescribeRequest, whole.body)
            wanted.sent = digest(package)
            body = wanted.SerializeToString()
            self._probes[with_plan] = Envelope(DESCRIBE, body, package)
        return self._probes[with_plan]

    def _arm(self, arm: Arm, described: Run, row: Run | None) -> Flow:
        """Cut, install, train and evaluate one arm, from wherever it was left."""
        name = arm_name(self.task, arm.name)
        latest = self._library.latest_round(name)
        if row is None or latest is None:  # nothing was trained: masks may still change
            row = begin_arm(
                arm,
                described,
                self._here,
                self._base,
                self._library,
                self._config.selection,
                self._sizes if arm.scores else None,
            )
            row = yield from self._heal(arm, row)
        adapter = arm.adapter(self._config.adapter)
        networks = Networks(
            name,
            cuts_of(row, self._here, self._base, self._library, adapter),
            self._base,
            self._config,
            adapter=adapter,
            num_classes=self._num_classes,
            healed=healed_weights(
                self._library, row.state.get("healed", {}), row.state["masks"].values()
            ),
        )
        ledger = Ledger.from_json(row.state["ledger"])
        installed = yield from self._install(networks, ledger)
        if latest is None:
            first, state = 0, networks.start(installed, self._pictures)
            self._commit(name, 0, state, ledger, {"server_seconds": row.state["server_seconds"]})
        else:
            # What was installed again is not part of the run as it would have been.
            first = latest.round
            state = CohortState.from_bytes(self._library.blobs.get(latest.adapter))
            ledger = Ledger.from_json(latest.state["ledger"])
        self._here.note(ledger)
        shrinking = self._shrinking(arm, adapter)
        for number in range(first + 1, self._config.rounds.count + 1):
            state, metrics = yield from self._round(arm, number, state, networks, ledger)
            changes: dict[str, Any] = {}
            if shrinking is not None and shrinking.pruning.due(number):
                state, networks, changes = yield from shrinking.cut(
                    number, row, state, networks, ledger
                )
                row = replace(row, state={**row.state, **changes})
            self._commit(name, number, state, ledger, metrics, changes)
        scores = yield from self._evaluate(arm, state, networks, ledger)
        ended = {
            "ledger": ledger.to_json(),
            "adapter": self._library.blobs.put(state.to_bytes()),
            "scores": scores,
        }
        rounds = self._config.rounds.count
        self._library.save_run(Run(name, "done", rounds, row.spec, {**row.state, **ended}))

    def _heal(self, arm: Arm, row: Run) -> Generator[Ask, list[Answer], Run]:
        """Heal what an arm cuts, where that is asked for and was not done, and write it down."""
        if self._healer is None or arm.scores is None or "healed" in row.state:
            return row
        started = time.perf_counter()
        healed = yield from self._healer.heal(row.state["masks"].values())
        seconds = row.state["server_seconds"] + time.perf_counter() - started
        row = replace(row, state={**row.state, "healed": healed, "server_seconds": seconds})
        self._library.save_run(row)
        return row

    def _shrinking(self, arm: Arm, adapter: AdapterConfig) -> Shrinking | None:
        """How the arm's networks go on shrinking, if they do: those that are cut at all."""
        if self._sizes is None or self._config.pruning is None or arm.scores is None:
            return None
        return Shrinking(
            here=self._here,
            pictures=self._pictures,
            base=self._base,
            library=self._library,
            config=self._config,
            pruning=self._config.pruning,
            sizes=self._sizes,
            adapter=adapter,
            num_classes=self._num_classes,
        )

    def _install(
        self, networks: Networks, ledger: Ledger
    ) -> Generator[Ask, list[Answer], dict[str, Installed]]:
        """Send every device its sub-network; class means and statistics come back."""
        messages = {
            device: networks.message(
                device,
                with_plan=device not in self._holding,
                with_weights=device not in self._keeping,
            )
            for device in networks.cuts
        }
        shorter = self._holding | self._keeping
        installed = yield from self._here.ask(
            messages,
            ledger,
            networks.read,
            whole=lambda device: (
                networks.message(device, with_plan=True) if device in shorter else None
            ),
        )
        for device, reply in installed.items():
            ledger.worked(device, INSTALL, reply.seconds)
        return installed

    def _round(
        self,
        arm: Arm,
        number: int,
        state: CohortState,
        networks: Networks,
        ledger: Ledger,
    ) -> Generator[Ask, list[Answer], tuple[CohortState, dict[str, float]]]:
        """Send the adapter, collect updates, aggregate."""
        rounds = self._config.rounds
        trains = AGGREGATIONS[arm.aggregation or self._config.aggregation].trains(number)
        sent = networks.sent(state)
        training = pb.LocalTraining(
            epochs=rounds.epochs,
            steps=rounds.steps,
            batch_size=rounds.batch_size,
            learning_rate=arm.learning_rate(rounds),
            momentum=rounds.momentum,
            weight_decay=rounds.weight_decay,
            schedule=rounds.schedule,
            augment=rounds.augment,
            optimiser=rounds.optimiser,
            head_learning_rate_scale=rounds.head_learning_rate_scale,
            trains=trains,
        )
        messages = networks.messages(
            ROUND,
            number,
            sent,
            lambda device: pb.RoundRequest(
                network=networks.meant(device),
                codec=arm.update_codec or self._config.update_codec,
                evaluate=True,
                seed=self._config.seed,
                training=training,
            ),
        )
        answers = yield from self._here.ask(
            messages,
            ledger,
            lambda device, answer: (
                *read_update(answer, sent[device][1], sent[device][0], trains),
                len(answer.blob),
            ),
            networks,
        )
        contributions, losses = [], []
        for device, (reply, trained, size) in answers.items():
            contributions.append(networks.contribution(device, trained, self._pictures[device]))
            ledger.worked(device, ROUND, reply.seconds)
            ledger.reached(device, number - 1, reply.evaluation)
            ledger.updated(device, size)
            losses.append(reply.loss)
        state, truncation = state.averaged(
            contributions, head=self._base.plan.head, trains=trains, sharing=rounds.sharing
        )
        metrics = {"loss": float(np.mean(losses)), "devices": float(len(losses))}
        return state, metrics | _lost(truncation)

    def _evaluate(
        self,
        arm: Arm,
        state: CohortState,
        networks: Networks,
        ledger: Ledger,
    ) -> Generator[Ask, list[Answer], dict[str, str]]:
        """The last figures; for a task that will be published also the devices' unit scores."""
        scorer = self._config.scorer if arm.publishes and self._config.publish else ""
        cuts, rounds = networks.cuts, self._config.rounds.count
        messages = networks.messages(
            EVALUATE,
            rounds,
            networks.sent(state),
            lambda device: pb.EvaluateRequest(
                network=networks.meant(device),
                scorer=scorer,
                seed=self._config.seed,
                keep=arm.publishes,
            ),
        )

        def read(device: str, answer: Envelope) -> tuple[pb.EvaluateReply, bytes]:
            plan = shrink_plan(self._base.plan, cuts[device].mask) if scorer else None
            return read_evaluation(answer, plan), answer.blob

        answers = yield from self._here.ask(messages, ledger, read, networks)
        scores = {}
        for device, (reply, blob) in answers.items():
            ledger.worked(device, EVALUATE, reply.seconds)
            ledger.reached(device, rounds, reply.evaluation)
            if scorer:
                scores[device] = self._library.blobs.put(blob)
        return scores

    def _commit(
        self,
        name: str,
        number: int,
        state: CohortState,
        ledger: Ledger,
        metrics: dict[str, float],
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a round durable before the next one starts, with what it changes in the run."""
        self._library.commit_round(
            name, number, state.to_bytes(), metrics, {**(changes or {}), "ledger": ledger.to_json()}
        )


def _lost(truncation: Truncation) -> dict[str, float]:
    """What refactoring lost, over all layers of all widths; nothing where there was none."""
    errors = [error for layers in truncation.values() for error in layers.values()]
    if not errors:
        return {}
    return {"truncation_worst": max(errors), "truncation_mean": float(np.mean(errors))}
