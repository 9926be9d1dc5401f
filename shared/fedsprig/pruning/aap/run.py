"""One run of adaptive activation-based pruning, round by round; settings: :mod:`.method`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from fedsprig.errors import InfeasibleBudgetError
from fedsprig.graph import materialize, shrink_plan
from fedsprig.masks import Mask, plan_macs
from fedsprig.masks.bits import Bools
from fedsprig.pruning.aap.attention import Strengths, attention
from fedsprig.pruning.aap.controller import Controller
from fedsprig.pruning.aap.history import History
from fedsprig.pruning.aap.thresholds import (
    Weighting,
    crossing,
    crossing_threshold,
    dropped_at,
    falling_thresholds,
    layer_count,
    next_fall,
    share_threshold,
)
from fedsprig.pruning.filling import filled
from fedsprig.pruning.finish import figures, finished
from fedsprig.pruning.job import Job, least_units
from fedsprig.pruning.journal import Journal
from fedsprig.pruning.nesting import lifted
from fedsprig.pruning.network import (
    Stage,
    accuracy,
    some_pictures,
    train,
    trainable,
    whole,
)
from fedsprig.pruning.product import Product, Progress
from fedsprig.pruning.rewinding import part
from fedsprig.seeds import derive_seed
from fedsprig.training import TrainConfig

if TYPE_CHECKING:
    from fedsprig.pruning.aap.method import AAP

SMALLEST_STEP: Final = 1 / 64
"""The search ends when the step is below this part of the first one."""
LITTLE: Final = 0.001
"""A round that takes less than this share of the whole network's size hardly changes it."""
_REWIND: Final = "rewind"


class AAPRun:
    """One run: what it has done lies in ``state``, which is all that a resumed one begins with."""

    def __init__(
        self, method: AAP, job: Job, settings: dict[str, Any], journal: Journal, progress: Progress
    ) -> None:
        self._method, self._job, self._settings = method, job, settings
        self._journal, self._progress = journal, progress
        latency = job.target.policy == "latency"
        self._weighting: Weighting = method.weighting or ("macs" if latency else "parameters")
        self._least = least_units(job.plan, method.floor, method.protect)
        generator = torch.Generator().manual_seed(derive_seed(job.seed, "aap", "pictures"))
        self._pictures = some_pictures(job, method.score_pictures, generator)
        self.state: dict[str, Any] = journal.state if journal.state is not None else self._begin()

    @property
    def ended(self) -> bool:
        """Whether the search is at its end; ``state`` says why."""
        return bool(self.state["ended"])

    def step(self) -> None:
        """One round after the first, judged and committed."""
        state = self.state
        controller = Controller.from_json(state["controller"])
        arrays = self._journal.network(f"round-{state['base']}")
        stage, history = Stage.restored(self._job, arrays), History.restored(arrays)
        strengths = self._strengths(stage)
        controller, drop, last = self._cut(stage, strengths, controller)
        if drop is None:
            self._end("every group is at its floor")
            return
        inner = Mask({name: ~gone for name, gone in drop.items()})
        mask = lifted(stage.mask, inner)
        if mask.digest in state["rejected"] and not controller.retry:
            again = {**figures(self._job, mask), "trained": False}
            self._judge(controller, None, history, again, last)
            return
        cut = self._retrained(stage, inner, mask, controller.round)
        found = {
            **figures(self._job, mask),
            "accuracy": accuracy(cut, self._job),
            "trained": True,
        }
        history = history.after(stage.mask, mask, strengths, controller.round)
        self._judge(controller, cut, history, found, last)

    def product(self) -> Product:
        """What the run found."""
        job, state = self._job, self.state
        arrays = self._journal.network(f"round-{state['best']}")
        stage, history = Stage.restored(job, arrays), History.restored(arrays)
        scores = history.scores(stage.mask, self._strengths(stage))
        best = next(item for item in state["rounds"] if item["round"] == state["best"])
        return finished(
            self._method.name,
            job,
            stage,
            scores,
            floor=self._method.floor,
            protect=self._method.protect,
            metrics={
                "accuracy_whole": state["reference"],
                "accuracy": best["accuracy"],
                "rounds": len(state["rounds"]),
            },
            settings={
                **self._settings,
                "rounds_done": state["rounds"],
                "ended": state["ended"],
            },
        )

    def _begin(self) -> dict[str, Any]:
        """Round 0: the whole network, trained where that is wanted."""
        job, method = self._job, self._method
        stage = whole(job)
        added = {}
        epoch = method.rewind_epoch if method.train_first else 0
        seed = derive_seed(job.seed, "aap", "whole")
        if epoch:
            early = part(method.training, 0, epoch)
            self._train(stage, early, f"{seed} early", "whole network, early epochs")
        if method.rewind == "weights":
            added[_REWIND] = stage.arrays()
        if method.train_first:
            self._train(stage, part(method.training, epoch), str(seed), "whole network")
        strengths = self._strengths(stage)
        scale = layer_count(job.plan) * float(np.concatenate(list(strengths.values())).mean())
        falls = falling_thresholds(strengths, job.plan, self._weighting, scale)
        step = method.step or share_threshold(falls, self._least, method.first_share)
        reference = accuracy(stage, job)
        found = {**figures(job, stage.mask), "accuracy": reference, "trained": True}
        fits = job.target.budget is not None and found["size"] <= job.target.amount
        state = {
            "controller": Controller(step).accept().to_json(),
            "first_step": step,
            "scale": scale,
            "reference": reference,
            "base": 0,
            "best": 0,
            "rejected": [],
            "still": 0,
            "rounds": [{"round": 0, "threshold": 0.0, "step": step, "accepted": True, **found}],
            "ended": "the whole network meets the target" if fits else "",
        }
        added["round-0"] = stage.arrays() | History.empty(job.plan).arrays()
        self._journal.write(state, add=added, keep=frozenset(added))
        return state

    def _cut(
        self, stage: Stage, strengths: Strengths, controller: Controller
    ) -> tuple[Controller, dict[str, Bools] | None, bool]:
        """The threshold of a round, the units that go, and whether it is the last.

        A round that would drop nothing is not trained: its threshold rises in whole steps to the
        next unit that falls.
        """
        plan = shrink_plan(self._job.plan, stage.mask)
        method, target = self._method, self._job.target
        falls = falling_thresholds(strengths, plan, self._weighting, self.state["scale"])
        following = next_fall(falls, self._least)
        if not controller.retry and controller.threshold < following < math.inf:
            steps = math.ceil((following - controller.threshold) / controller.step)
            raised = controller.threshold + steps * controller.step
            controller = controller.at(max(following, raised))
        controller = self._bounded(stage.mask, falls, controller)
        drop = dropped_at(falls, controller.threshold, self._least)
        if target.budget is None:
            nothing = following == math.inf and not controller.retry
            return controller, None if nothing else drop, controller.round >= method.rounds

        def fits(gone: dict[str, Bools]) -> bool:
            return self._job.size(_without(stage.mask, gone)) <= target.amount

        last = following == math.inf or controller.round >= method.rounds or fits(drop)
        if last:
            drop = crossing(falls, self._least, fits)
            if target.unit != "ms":  # there every size is a measurement
                drop = filled(falls, drop, fits)
            if not fits(drop):
                raise InfeasibleBudgetError(
                    f"no network of this run keeps {target.amount:,.6g} {target.unit}: raise the "
                    "target or lower floor"
                )
        return controller, drop, last

    def _bounded(self, mask: Mask, falls: Strengths, controller: Controller) -> Controller:
        """The same round at the threshold that takes about ``most_share``, where it takes more.

        Attentions lie close together: where one step drops a few units, two may drop most of a
        network.
        """
        allowed = (1 - self._method.most_share) * self._weight(mask)

        def much(gone: dict[str, Bools]) -> bool:
            return self._weight(_without(mask, gone)) <= allowed

        if not much(dropped_at(falls, controller.threshold, self._least)):
            return controller
        return controller.bounded(crossing_threshold(falls, self._least, much))

    def _judge(
        self,
        controller: Controller,
        cut: Stage | None,
        history: History,
        found: dict[str, Any],
        last: bool,
    ) -> None:
        """Accept or reject, and commit."""
        state, number = self.state, controller.round
        target = self._job.target
        held = cut is not None and (
            target.budget is not None or target.allows(state["reference"] - found["accuracy"])
        )
        line = {
            "round": number,
            "threshold": controller.threshold,
            "step": controller.step,
            "accepted": held,
            **found,
        }
        added = {}
        if held and cut is not None:
            added[f"round-{number}"] = cut.arrays() | history.arrays()
            following: Controller | None = controller.accept()
            before, whole = self._line(state["base"]), state["rounds"][0]
            little = self._rank(before)[0] - self._rank(line)[0] < LITTLE * self._rank(whole)[0]
            state["still"] = state["still"] + 1 if little else 0
            state["base"], state["rejected"] = number, []
            if target.budget is not None or self._rank(line) < self._rank(
                self._line(state["best"])
            ):
                state["best"] = number
        else:
            following = controller.reject()
            state["rejected"].append(found["mask"])
            if following is not None:
                # A round that is given up is still what its own retry begins with.
                base = controller.accepted[-1].round
                if base != state["base"]:
                    state["base"], state["rejected"] = base, []
        state["rounds"].append(line)
        if following is not None:
            state["controller"] = following.to_json()
        state["ended"] = self._why_to_end(following, last)
        keep = {item["round"] for item in state["controller"]["accepted"]}
        names = {f"round-{r}" for r in keep | {state["base"], state["best"]}}
        if self._method.rewind == "weights":
            names.add(_REWIND)
        self._journal.write(state, add=added, keep=frozenset(names))

    def _why_to_end(self, following: Controller | None, last: bool) -> str:
        if self._job.target.budget is not None:
            return "the limit is met" if last else ""
        if following is None:
            return "no round is left to roll back to"
        if following.step < SMALLEST_STEP * self.state["first_step"]:
            return "the step is small"
        if self.state["still"] >= self._method.patience:
            return f"{self.state['still']} rounds hardly changed the size"
        return "all rounds are done" if last else ""

    def _end(self, why: str) -> None:
        self.state["ended"] = why
        keep = {"round-" + str(self.state["best"])}
        self._journal.write(self.state, add={}, keep=frozenset(keep))

    def _retrained(self, stage: Stage, inner: Mask, mask: Mask, number: int) -> Stage:
        """What a round leaves, trained: cut from the last network, or from the early one."""
        job, method = self._job, self._method
        if method.rewind == "weights":
            early = Stage.restored(job, self._journal.network(_REWIND))
            network = materialize(early.network, job.plan, mask)
        else:
            network = materialize(stage.network, shrink_plan(job.plan, stage.mask), inner)
        cut = Stage(trainable(network), mask)
        config = part(method.training, method.rewind_epoch)
        self._train(cut, config, str(derive_seed(job.seed, "aap", str(number))), f"round {number}")
        return cut

    def _train(self, stage: Stage, config: TrainConfig, seed: str, name: str) -> None:
        train(
            stage,
            self._job,
            config,
            seed=derive_seed(self._job.seed, seed),
            calibration=self._pictures,
            name=name,
            progress=self._progress,
            checkpoint=self._journal.checkpoint(name),
        )

    def _strengths(self, stage: Stage) -> Strengths:
        plan = shrink_plan(self._job.plan, stage.mask)
        method = self._method
        return attention(
            stage.network, plan, self._pictures.images, power=method.power, form=method.form
        )

    def _weight(self, mask: Mask) -> float:
        """What is to become small: what the target limits, else what layers are pruned by."""
        if self._job.target.budget is None and self._weighting == "macs":
            return plan_macs(self._job.plan, mask)
        return self._job.size(mask)

    def _rank(self, line: dict[str, Any]) -> tuple[float, float]:
        """The smaller network first, then the more accurate one."""
        by_macs = self._job.target.budget is None and self._weighting == "macs"
        return line["macs" if by_macs else "size"], -line["accuracy"]

    def _line(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = next(i for i in self.state["rounds"] if i["round"] == number)
        return found


def _without(mask: Mask, drop: dict[str, Bools]) -> Mask:
    """What stays of the whole network once units of what ``mask`` kept go."""
    return lifted(mask, Mask({name: ~gone for name, gone in drop.items()}))
