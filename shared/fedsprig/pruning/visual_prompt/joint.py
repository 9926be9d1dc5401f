"""Several tasks, one hyper-network: theta and omega learnt together, a prompt for each task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsprig.artifacts.container import Array
from fedsprig.errors import BudgetError, NonFiniteLossError, PlanError, TrainingError
from fedsprig.masks import Budget
from fedsprig.pruning.job import Job
from fedsprig.pruning.visual_prompt.hyper_network import weight_statistics
from fedsprig.pruning.visual_prompt.method import PASS, picture_shape
from fedsprig.pruning.visual_prompt.predictor import MaskPredictor
from fedsprig.pruning.visual_prompt.search import Search, SearchCourse
from fedsprig.seeds import derive_seed
from fedsprig.training import TrainConfig
from fedsprig.training.draw import Drawer, endless_batches
from fedsprig.training.modes import device_of
from fedsprig.training.randomness import drawing_from
from fedsprig.training.strides import subsampled_strides

Told = Callable[[int, int], None]


def trained_together(
    jobs: Sequence[Job], method: PASS, *, progress: Told = lambda done, steps: None
) -> tuple[MaskPredictor, list[Array]]:
    """Learn one predictor and a prompt for every job.

    Every step takes a batch of each job in turn. Each job has its own head and budget; the weights
    of the body stand still and are the same for all.

    Args:
        jobs: two at least, of one base model, each with a limit of bytes or multiply-accumulates.
        method: the settings; its ``search`` is of every job.
        progress: told of the steps done and all steps.

    Returns:
        The predictor, and the jobs' prompts in their order.

    Raises:
        BudgetError: a job without such a limit, or settings without a learnt prompt.
        PlanError: jobs of different base models.
        TrainingError: fewer than two jobs.
        InfeasibleBudgetError: a limit below the smallest network.
        NonFiniteLossError: the loss became NaN or infinite.
    """
    budgets = _checked(jobs, method)
    seed = jobs[0].seed
    scorer = method.first_scorer(jobs[0].model, jobs[0], seed)
    searches = [
        Search(job.model, method.selection(job), scorer, method.first_prompt(job, seed))
        for job in jobs
    ]
    config = method.search
    total = max(config.total_steps(len(job.train.images)) for job in jobs)
    optimiser = _adam(searches, config)
    draws = [
        _Draws(job, search, config, derive_seed(seed, "together", str(number)))
        for number, (job, search) in enumerate(zip(jobs, searches, strict=True))
    ]
    with ExitStack() as stack:
        for search, drawn in zip(searches, draws, strict=True):
            search.train()
            stack.enter_context(subsampled_strides(search))
            stack.enter_context(drawing_from(search, drawn.dropping))
        for step in range(total):
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate_at(step, total)
            for search, drawn, budget in zip(searches, draws, budgets, strict=True):
                search.budget = search.selection.between(budget, step / total)
                images, labels = drawn.batch()
                loss = F.cross_entropy(search(images), labels)
                if not math.isfinite(loss.item()):
                    raise NonFiniteLossError(
                        f"the loss is not finite after {step} of {total} steps: lower "
                        f"learning_rate (now {config.learning_rate:g})"
                    )
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
            progress(step + 1, total)
    predictor = MaskPredictor.of(scorer, jobs[0].plan, picture_shape(jobs[0]), method.statistics)
    return predictor, [frame for search in searches if (frame := search.frame()) is not None]


def prompt_for(
    predictor: MaskPredictor,
    job: Job,
    method: PASS,
    *,
    progress: Told = lambda done, steps: None,
) -> Array:
    """Learn the prompt of a new task; theta and omega stand still, the task's head learns along.

    Args:
        predictor: of the job's base model; left as it is.
        job: with a limit of bytes or multiply-accumulates.
        method: the settings; its ``search`` is of the prompt.
        progress: told of the steps done and all steps.

    Returns:
        The prompt, float32 ``[c, h, w]``, for :meth:`MaskPredictor.scores`.

    Raises:
        BudgetError: a job without such a limit, or a predictor that reads no prompt.
        PlanError: a job of other groups, or with pictures of another size.
        InfeasibleBudgetError: a limit below the smallest network.
    """
    budget = _limit(job)
    form = predictor.form
    if form.groups != tuple((group.name, group.units) for group in job.plan.groups):
        raise PlanError("the predictor is of another base model than the job: take the job's")
    if form.picture != picture_shape(job):
        raise PlanError(
            f"the predictor reads prompts of {list(form.picture)}, the pictures are "
            f"{list(picture_shape(job))}: resize them"
        )
    prompt = method.first_prompt(job, job.seed)
    if not form.prompted or prompt is None or method.prompt != "learned":
        raise BudgetError("no prompt can be learnt: take a predictor and settings with one")
    job.check_feasible(method.floor, method.protect)
    search = Search(job.model, method.selection(job), predictor.copied_scorer(), prompt)
    SearchCourse(config=method.search, budget=budget, seed=job.seed).run(
        search, job.train, progress=lambda _, done, steps: progress(done, steps)
    )
    frame = search.frame()
    if frame is None:
        raise BudgetError("no prompt was learnt")
    return frame


class _Draws:
    """One job's batches, and what its dropout draws from."""

    def __init__(self, job: Job, search: Search, config: TrainConfig, seed: int) -> None:
        self._device = device_of(search)
        self._generator = torch.Generator().manual_seed(seed)
        self._drawer = Drawer(job.train.images, config.augment)
        self._labels = job.train.labels.to(self._device)
        self._order = endless_batches(len(self._labels), config.batch_size, self._generator)
        self.dropping = torch.Generator(self._device).manual_seed(derive_seed(seed, "dropout"))

    def batch(self) -> tuple[Tensor, Tensor]:
        index = next(self._order)
        images = self._drawer.draw(index, self._generator).to(self._device)
        return images, self._labels[index.to(self._device)]


def _adam(searches: Sequence[Search], config: TrainConfig) -> torch.optim.Adam:
    """Over all that trains, each once; biases do not decay."""
    parameters = nn.ModuleList(searches).parameters()
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in parameters:
        if parameter.requires_grad:
            groups[parameter.ndim > 1].append(parameter)
    return torch.optim.Adam(
        [
            {"params": found, "weight_decay": config.weight_decay if decayed else 0.0}
            for decayed, found in groups.items()
        ],
        lr=config.learning_rate,
    )


def _checked(jobs: Sequence[Job], method: PASS) -> list[Budget]:
    if len(jobs) < 2:
        raise TrainingError(f"{len(jobs)} job(s) to learn from: give two at least")
    if method.prompt != "learned":
        raise BudgetError("tasks differ by their prompts: set prompt=learned")
    if method.search.optimiser != "adam":
        raise BudgetError("tasks are learnt together by Adam: set search.optimiser=adam")
    seen = [
        weight_statistics(dict(job.model.named_parameters()), job.plan, method.statistics)
        for job in jobs
    ]
    names = [tuple(group.name for group in job.plan.groups) for job in jobs]
    for job, statistics, own in zip(jobs, seen, names, strict=True):
        same = own == names[0] and all(map(torch.equal, statistics, seen[0]))
        if not same or picture_shape(job) != picture_shape(jobs[0]):
            raise PlanError(
                "the jobs are of different base models: begin all with one model's weights, plan "
                "and picture size"
            )
        job.check_feasible(method.floor, method.protect)
    return [_limit(job) for job in jobs]


def _limit(job: Job) -> Budget:
    budget = job.target.budget
    if budget is None or budget.latency_ms is not None:
        raise BudgetError(
            "a mask predictor is learnt within bytes or multiply-accumulates: give such a target"
        )
    return budget
