"""The hyper-network as a predictor of masks for new tasks: the prompt is the task's state.

One theta and omega serve all tasks of a base model. A task is a prompt of a few thousand numbers
(its frame), and a new one costs no more than to learn that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, get_args

import numpy as np
import torch
from torch import Tensor

from fedsprig.artifacts.container import Array, Limits, pack, unpack
from fedsprig.artifacts.digest import digest
from fedsprig.errors import ArtifactError, DataError, PlanError
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks import ScoreSet
from fedsprig.pruning.visual_prompt.hyper_network import Statistic
from fedsprig.pruning.visual_prompt.search import Scorer

KIND: Final = "fedsprig.mask_predictor.1"
_SETTINGS: Final = "predictor:settings"
_VALUE: Final = "predictor:"
_LIMITS: Final = Limits(total_bytes=1 << 30)
_MAX_SETTINGS_BYTES: Final = 8 << 20
MAX_WIDTH: Final = 1 << 12
_MAX_SIDE: Final = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorForm:
    """What the arrays of a predictor are to be.

    Attributes:
        groups: names and units, in the plan's order.
        picture: ``(c, h, w)`` of the pictures, and so of prompts.
        width: d.
        recurrent: LSTM cell or perceptron.
        prompted: whether there is an encoder.
        statistics: what the hyper-network sees of weights.
    """

    groups: tuple[tuple[str, int], ...]
    picture: tuple[int, int, int]
    width: int
    recurrent: bool
    prompted: bool
    statistics: tuple[Statistic, ...]

    @classmethod
    def parse(cls, data: bytes) -> PredictorForm:
        """Read a form from JSON.

        Raises:
            ArtifactError: it is none.
        """
        try:
            found = json.loads(data)
            form = cls(
                groups=tuple((name, units) for name, units in found.pop("groups")),
                picture=tuple(found.pop("picture")),
                statistics=tuple(found.pop("statistics")),
                **found,
            )
            sound = form._is_sound()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise ArtifactError("the predictor's settings are malformed: fetch it again")
        return form

    def _is_sound(self) -> bool:
        sides = (*self.picture, self.width, *(units for _, units in self.groups))
        return (
            all(type(size) is int and 0 < size <= _MAX_SIDE for size in sides)
            and all(type(name) is str for name, _ in self.groups)
            and len(self.picture) == 3
            and self.width <= MAX_WIDTH
            and type(self.recurrent) is type(self.prompted) is bool
            and 0 < len(self.statistics) <= len(get_args(Statistic))
            and set(self.statistics) <= set(get_args(Statistic))
            and bool(self.groups)
        )

    def scorer(self) -> Scorer:
        """A scorer of this form without values: no memory is taken."""
        with torch.device("meta"):
            return Scorer.drawn(
                [torch.empty(units, len(self.statistics)) for _, units in self.groups],
                self.picture[0],
                width=self.width,
                recurrent=self.recurrent,
                prompted=self.prompted,
                seed=0,
            )


class MaskPredictor:
    """A prompt -> a score for every unit of a base model.

    It is read from what a search left, of one task or of several that were learnt together
    (:func:`fedsprig.pruning.visual_prompt.joint.trained_together`).

    Attributes:
        form: its settings.
    """

    def __init__(self, scorer: Scorer, form: PredictorForm) -> None:
        """Take a scorer as it is; it is not changed from here on."""
        self.form = form
        self._scorer = scorer.requires_grad_(False).cpu()

    @classmethod
    def of(
        cls,
        scorer: Scorer,
        plan: GroupPlan,
        picture: tuple[int, ...],
        statistics: Sequence[Statistic],
    ) -> MaskPredictor:
        """What a search learnt.

        Args:
            scorer: theta and omega; copied.
            plan: the groups.
            picture: ``(c, h, w)``.
            statistics: what the hyper-network sees of weights.
        """
        channels, height, breadth = picture
        form = PredictorForm(
            groups=tuple((group.name, group.units) for group in plan.groups),
            picture=(channels, height, breadth),
            width=scorer.hyper_network.width,
            recurrent=scorer.hyper_network.recurrent,
            prompted=scorer.encoder is not None,
            statistics=tuple(statistics),
        )
        own = form.scorer()
        state = {name: value.detach().cpu().clone() for name, value in scorer.state_dict().items()}
        own.load_state_dict(state, assign=True)
        return cls(own, form)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of :meth:`to_bytes`."""
        return digest(self.to_bytes())

    def copied_scorer(self) -> Scorer:
        """Theta and omega, to learn a prompt with; they ask for no gradient."""
        own = self.form.scorer()
        state = {name: value.clone() for name, value in self._scorer.state_dict().items()}
        own.load_state_dict(state, assign=True)
        return own.requires_grad_(False)

    def scores(self, frame: Array | None) -> ScoreSet:
        """Soft scores of all units; compare them as they are (``solve(..., normalise=False)``).

        Args:
            frame: the task's state, float32 ``[c, h, w]``; ``None`` for a predictor without prompt.

        Raises:
            DataError: a frame of another size, or one that is not finite.
        """
        given = _checked(frame, self.form.picture) if self.form.prompted else None
        with torch.no_grad():
            values = self._scorer(given)
        pairs = zip(self.form.groups, values, strict=True)
        return ScoreSet({name: soft.numpy() for (name, _), soft in pairs})

    def arrays(self) -> dict[str, Array]:
        """All of it, as a product's state holds it."""
        settings = json.dumps(asdict(self.form), sort_keys=True, separators=(",", ":"))
        values = self._scorer.state_dict()
        return {
            _SETTINGS: np.frombuffer(settings.encode(), np.uint8),
            **{_VALUE + name: value.numpy().copy() for name, value in values.items()},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], plan: GroupPlan) -> MaskPredictor:
        """What :meth:`arrays` was of; other arrays are left alone.

        Raises:
            ArtifactError: arrays that are missing, of another shape or type, or not finite.
            PlanError: a predictor of other groups.
        """
        settings = arrays.get(_SETTINGS)
        if settings is None or settings.dtype != np.uint8 or settings.ndim != 1:
            raise ArtifactError("the arrays hold no mask predictor: take those of a PASS product")
        if len(settings) > _MAX_SETTINGS_BYTES:
            raise ArtifactError("the predictor's settings are too long: fetch it again")
        form = PredictorForm.parse(settings.tobytes())
        if form.groups != tuple((group.name, group.units) for group in plan.groups):
            raise PlanError("the predictor is of another plan: use the plan that it was made with")
        scorer = form.scorer()
        state: dict[str, Any] = {}
        for name, expected in scorer.state_dict().items():
            array = arrays.get(_VALUE + name)
            if array is None or array.dtype != np.float32 or array.shape != tuple(expected.shape):
                raise ArtifactError(
                    f"the predictor has no float32 {list(expected.shape)} {name}: fetch it again"
                )
            if not np.isfinite(array).all():
                raise ArtifactError(f"the predictor's {name} is not finite: fetch it again")
            state[name] = torch.from_numpy(array.copy())
        unknown = {n.removeprefix(_VALUE) for n in arrays if n.startswith(_VALUE)} - state.keys()
        if unknown - {_SETTINGS.removeprefix(_VALUE)}:
            raise ArtifactError(f"the predictor has an unknown part {min(unknown)!r:.80}")
        scorer.load_state_dict(state, assign=True)
        return cls(scorer, form)

    def to_bytes(self) -> bytes:
        """One safetensors artefact; equal predictors give equal bytes."""
        return pack(self.arrays(), {"kind": KIND})

    @classmethod
    def from_bytes(cls, data: bytes, plan: GroupPlan) -> MaskPredictor:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            ArtifactError: no artefact, one of another kind, or a malformed one (its subclasses:
                truncated, too large).
            PlanError: a predictor of other groups.
        """
        arrays, metadata = unpack(data, limits=_LIMITS)
        if metadata.get("kind") != KIND:
            raise ArtifactError(f"the artefact is no {KIND}: fetch it again")
        return cls.from_arrays(arrays, plan)


def _checked(frame: Array | None, picture: tuple[int, int, int]) -> Tensor:
    if frame is None or frame.dtype != np.float32 or frame.shape != picture:
        found = "none" if frame is None else f"{frame.dtype} {list(frame.shape)}"
        raise DataError(f"the prompt is {found}: give float32 {list(picture)}")
    if not np.isfinite(frame).all():
        raise DataError("the prompt is not finite: learn it again with a lower learning rate")
    return torch.from_numpy(frame.copy())
