"""The search for a mask: hyper-network, prompt encoder and prompt learn together, weights stand."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsprig.artifacts.container import Array
from fedsprig.masks import Budget, ScoreSet
from fedsprig.pruning.by_epochs import fit_by_epochs
from fedsprig.pruning.gates import gated
from fedsprig.pruning.input_frame import framed
from fedsprig.pruning.job import Labelled
from fedsprig.pruning.journal import UNSAVED, Checkpoint
from fedsprig.pruning.product import Progress, silent
from fedsprig.pruning.visual_prompt.hyper_network import HyperNetwork
from fedsprig.pruning.visual_prompt.prompt import Prompt, PromptEncoder
from fedsprig.pruning.visual_prompt.selection import Selection
from fedsprig.training import TrainConfig
from fedsprig.training.modes import device_of

PromptKind = Literal["learned", "fixed", "none"]

SEARCH: Final = "search"


class Scorer(nn.Module):
    """Theta and omega: everything between a prompt and scores, of one network.

    Attributes:
        hyper_network: theta.
        encoder: omega; ``None`` where no prompt is read.
    """

    def __init__(self, hyper_network: HyperNetwork, encoder: PromptEncoder | None) -> None:
        super().__init__()
        self.hyper_network = hyper_network
        self.encoder = encoder

    @classmethod
    def drawn(
        cls,
        statistics: Sequence[Tensor],
        channels: int,
        *,
        width: int,
        recurrent: bool,
        prompted: bool,
        seed: int,
    ) -> Scorer:
        """One that has learnt nothing.

        Args:
            statistics: of every group.
            channels: of the pictures.
            width: d.
            recurrent: LSTM cell or perceptron.
            prompted: whether it reads a prompt.
            seed: of the first weights.
        """
        generator = torch.Generator().manual_seed(seed)
        return cls(
            HyperNetwork(statistics, width, generator, recurrent=recurrent),
            PromptEncoder(channels, width, generator) if prompted else None,
        )

    def forward(self, frame: Tensor | None) -> list[Tensor]:
        """Soft scores by group, for a prompt's frame ``[c, h, w]``.

        Without a frame or an encoder, the state begins at zero.
        """
        if frame is None or self.encoder is None:
            zero = self.hyper_network.slopes.new_zeros(2 * self.hyper_network.width)
            return list(self.hyper_network(zero))
        return list(self.hyper_network(self.encoder(frame)))


class Search(nn.Module):
    """A network whose units pass the gates that a scorer opens; maps pictures to logits.

    The network's weights stand still, but for its head. In training, batch normalisation goes by
    the batch: the running statistics are those of the whole network, behind closed gates
    activations have others, and those of the cut network are measured anew as well. With the whole
    network's, a search finds units that make up for wrong statistics: on CIFAR-10 at a quarter of
    ResNet-20's multiply-accumulates, its loss was lower and that of the cut network twice as high.
    Gates act where units are consumed, so that closed ones learn
    (:func:`fedsprig.pruning.gates.gated`).

    Attributes:
        network: a copy.
        scorer: theta and omega.
        prompt: V.
        selection: how scores become gates.
        budget: what the gates keep to; the whole network's at first, set before every step.
    """

    def __init__(
        self,
        network: nn.Module,
        selection: Selection,
        scorer: Scorer,
        prompt: Prompt | None,
    ) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        head = selection.plan.head
        if head:
            self.network.get_submodule(head).requires_grad_(True)
        self.scorer = scorer
        self.prompt = prompt
        self.budget = selection.between(Budget(macs=1), 0)
        self.selection = selection
        self.to(device_of(network))

    def scores(self) -> ScoreSet:
        """The soft scores of all units."""
        with torch.no_grad():
            return self.selection.score_set(self.scorer(self._frame()))

    def frame(self) -> Array | None:
        """What the prompt adds to pictures, float32 ``[c, h, w]``."""
        return None if self.prompt is None else self.prompt().detach().cpu().numpy().copy()

    def learnt(self) -> dict[str, Array]:
        """Copies of all that trains, by name."""
        return {
            name: value.detach().cpu().numpy().copy()
            for name, value in self.named_parameters()
            if value.requires_grad
        }

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Take back what :meth:`learnt` gave."""
        with torch.no_grad():
            for name, value in self.named_parameters():
                if value.requires_grad:
                    value.copy_(torch.from_numpy(arrays[name]))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ``images [n, c, h, w]``."""
        frame = self._frame()
        with torch.autocast(images.device.type, enabled=False):  # half the bits would tie scores
            gates = self.selection.gates(self.scorer(frame), self.budget)
        parameters = dict(self.network.named_parameters())
        opened = gated(parameters, self.selection.plan, gates, where="consumed")
        pictures = images if frame is None else framed(images, frame)
        logits: Tensor = functional_call(self.network, opened, (pictures,))
        return logits

    def _frame(self) -> Tensor | None:
        return None if self.prompt is None else self.prompt()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SearchCourse:
    """How a search goes on.

    Attributes:
        config: how long and how.
        budget: what it ends at; ``weight_bytes`` or ``macs``.
        seed: of the order of the pictures, epoch by epoch.
    """

    config: TrainConfig
    budget: Budget
    seed: int

    def run(
        self,
        search: Search,
        pictures: Labelled,
        *,
        progress: Progress = silent,
        checkpoint: Checkpoint = UNSAVED,
    ) -> None:
        """Learn in place; saved after every epoch.

        Args:
            search: as it was made; a resumed one too.
            pictures: what it learns from.
            progress: told of every step.
            checkpoint: where it begins and what it is saved to.
        """
        selection = search.selection
        if checkpoint.arrays:
            search.restore(checkpoint.arrays)

        def narrow(done: int, steps: int) -> None:
            search.budget = selection.between(self.budget, done / max(1, steps))

        fit_by_epochs(
            search,
            pictures,
            self.config,
            seed=self.seed,
            name=SEARCH,
            head=f"network.{selection.plan.head}" if selection.plan.head else "",
            progress=progress,
            learnt=search.learnt,
            checkpoint=checkpoint,
            before_step=narrow,
        )
