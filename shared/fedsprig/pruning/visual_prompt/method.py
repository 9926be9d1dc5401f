"""PASS: a visual prompt and a recurrent hyper-network find the mask; then the rest is fine-tuned.

"PASS: Visual Prompt Locates Good Structure Sparsity through a Recurrent HyperNetwork", arXiv
2407.17412. Written from METHODS.md's reconstruction; there is no public code. What is ours: groups
in place of single layers, a budget that is met exactly at every step, gates where units are
consumed, and scores that begin at the weights' magnitudes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Final, get_args

import torch
from torch import nn

from fedsprig.errors import BudgetError
from fedsprig.masks import Budget, Mask, plan_macs
from fedsprig.masks.costs import BYTES_PER_PARAMETER
from fedsprig.pruning.input_frame import INPUT_FRAME, add_to_input
from fedsprig.pruning.job import Job
from fedsprig.pruning.network import Stage, accuracy
from fedsprig.pruning.sized import SizedPruner
from fedsprig.pruning.trial import Found, Trial
from fedsprig.pruning.visual_prompt.hyper_network import Statistic, weight_statistics
from fedsprig.pruning.visual_prompt.predictor import MAX_WIDTH, MaskPredictor
from fedsprig.pruning.visual_prompt.prompt import Prompt
from fedsprig.pruning.visual_prompt.search import SEARCH, PromptKind, Scorer, Search, SearchCourse
from fedsprig.pruning.visual_prompt.selection import Selection
from fedsprig.seeds import derive_seed
from fedsprig.training import TrainConfig, recalibrate

PROMPT: Final = "prompt"
"""The name under which a product's state holds the frame that was learnt, beside the predictor."""


@dataclass(frozen=True, kw_only=True)
class PASS(SizedPruner):
    """Learn a visual prompt and a recurrent hyper-network that find the mask (PASS).

    Attributes:
        search: of prompt, encoder, hyper-network and head, while the other weights stand still.
        prompt: ``"learned"``; ``"fixed"``, drawn at random and never trained; ``"none"``, neither
            at the input nor at the hyper-network.
        recurrent: else a perceptron takes the place of the LSTM cell.
        statistics: what the hyper-network sees of a group's weights: ``"mean"``, ``"std"``,
            ``"l2"``; scores begin at the first.
        width: d, of the hyper-network's state.
        border: pixels of the prompt's frame; by default a fourteenth of the picture's side.
        keep_prompt: whether the pruned network is fine-tuned, judged and delivered with the prompt
            at its input. A limit of bytes then holds for weights and frame together.

    Raises:
        BudgetError: a setting out of its range.
    """

    search: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=4, batch_size=64, learning_rate=1e-3, optimiser="adam", weight_decay=1e-4
        )
    )
    prompt: PromptKind = "learned"
    recurrent: bool = True
    statistics: tuple[Statistic, ...] = ("mean",)
    width: int = 64
    border: int | None = None
    keep_prompt: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt not in get_args(PromptKind):
            raise BudgetError(
                f"prompt is {self.prompt!r:.40}: use {', '.join(get_args(PromptKind))}"
            )
        if not self.statistics or not set(self.statistics) <= set(get_args(Statistic)):
            raise BudgetError(
                f"statistics is {self.statistics!r:.60}: use some of "
                f"{', '.join(get_args(Statistic))}"
            )
        if len(set(self.statistics)) < len(self.statistics):
            raise BudgetError(f"statistics names one twice: {', '.join(self.statistics)}")
        if not 1 <= self.width <= MAX_WIDTH or (self.border is not None and self.border < 1):
            raise BudgetError(f"width is 1 to {MAX_WIDTH}, and border 1 or more")
        if self.keep_prompt and self.prompt == "none":
            raise BudgetError("keep_prompt=true needs a prompt: set prompt=learned or fixed")

    @property
    def name(self) -> str:
        """The method's name."""
        return "pass"

    def check(self, job: Job) -> None:
        """Refuse a limit that the smallest network breaks, with its frame where that is kept.

        Raises:
            InfeasibleBudgetError: says by how much.
        """
        super().check(job)
        if job.target.unit == "bytes" and self._frame_bytes(job):
            left = max(1.0, job.target.amount - self._frame_bytes(job))
            rest = replace(job, target=replace(job.target, amount=left))
            rest.check_feasible(self.floor, self.protect)

    def attempt(self, trial: Trial) -> Found:
        """Search for a mask, freeze it, cut, fine-tune.

        Raises:
            InfeasibleBudgetError: no mask is within the budget; before the search.
        """
        job, network = trial.job, trial.whole.network
        selection = self.selection(job)
        prompt = self.first_prompt(job, trial.seed)
        scorer = self.first_scorer(network, job, trial.seed)
        search = Search(network, selection, scorer, prompt)
        budget = self._without_frame(trial)
        checkpoint = trial.checkpoint(SEARCH)
        # What was measured before a kill would be measured otherwise after it.
        state = checkpoint.state
        macs = state["macs"] if state else self._macs(search, budget, trial)
        SearchCourse(
            config=self.search,
            budget=budget if macs is None else Budget(macs=macs),
            seed=trial.seed,
        ).run(
            search,
            job.train,
            progress=trial.progress,
            checkpoint=checkpoint.beside(lambda: {"macs": macs}),
        )
        scores = search.scores()
        stage = self._cut(trial, search, trial.solve(scores, budget, normalise=False))
        if len(trial.pictures.images) > 1:
            recalibrate(stage.network, trial.pictures.images)
        cut = accuracy(stage, job)
        trial.train(stage, self.training, "fine-tuning")
        kept = MaskPredictor.of(scorer, job.plan, picture_shape(job), self.statistics).arrays()
        frame = search.frame()
        if frame is not None:
            kept[PROMPT] = frame
        if frame is not None and self.keep_prompt:
            kept[INPUT_FRAME] = frame
        return Found(stage, scores, state=kept, metrics={"accuracy_cut": cut}, comparable=True)

    def selection(self, job: Job) -> Selection:
        """How masks are taken from scores."""
        return Selection(plan=job.plan, floor=self.floor, protect=self.protect)

    def first_scorer(self, network: nn.Module, job: Job, seed: int) -> Scorer:
        """Theta and omega that have learnt nothing.

        Args:
            network: the whole one, whose weights they read.
            job: for whom.
            seed: of the first weights.
        """
        return Scorer.drawn(
            weight_statistics(dict(network.named_parameters()), job.plan, self.statistics),
            picture_shape(job)[0],
            width=self.width,
            recurrent=self.recurrent,
            prompted=self.prompt != "none",
            seed=derive_seed(seed, "hyper-network"),
        )

    def first_prompt(self, job: Job, seed: int) -> Prompt | None:
        """A prompt that has learnt nothing; a random one that never will, where it is fixed."""
        if self.prompt == "none":
            return None
        prompt = Prompt(picture_shape(job), self.border)
        if self.prompt == "fixed":
            prompt.randomise_(torch.Generator().manual_seed(derive_seed(seed, "prompt")))
            prompt.requires_grad_(False)
        return prompt

    def _macs(self, search: Search, budget: Budget, trial: Trial) -> int | None:
        """What the search keeps to in place of milliseconds, which no step has time to measure.

        It is the multiply-accumulates of the network that meets the milliseconds before anything is
        learnt; the mask at the end is measured again.
        """
        mask = self.selection(trial.job).mask(search.scores(), budget, trial.job.latency_ms)
        return None if budget.latency_ms is None else plan_macs(trial.job.plan, mask)

    def _cut(self, trial: Trial, search: Search, mask: Mask) -> Stage:
        network: nn.Module = copy.deepcopy(trial.whole.network)
        if trial.job.plan.head:
            head = search.network.get_submodule(trial.job.plan.head)
            network.get_submodule(trial.job.plan.head).load_state_dict(head.state_dict())
        stage = trial.cut(mask, network)
        if self.keep_prompt and search.prompt is not None:
            add_to_input(stage.network, search.prompt())
        return stage

    def _without_frame(self, trial: Trial) -> Budget:
        bytes_ = trial.budget.weight_bytes
        if bytes_ is None:
            return trial.budget
        return replace(trial.budget, weight_bytes=max(1, bytes_ - self._frame_bytes(trial.job)))

    def _frame_bytes(self, job: Job) -> int:
        if not self.keep_prompt:
            return 0
        shape = picture_shape(job)
        return BYTES_PER_PARAMETER * shape[0] * int(Prompt(shape, self.border).border.sum())


def picture_shape(job: Job) -> tuple[int, int, int]:
    """``(c, h, w)`` of the job's pictures."""
    _, channels, height, breadth = job.train.images.shape
    return channels, height, breadth
