"""Named errors. A message is one line that says what is wrong and how to mend it.

The exit codes are stable and grouped: 10 models and plans, 20 data, 30 budgets, 40 artefacts,
50 updates and messages, 60 scenarios, 70 library, 80 runs.
"""

from __future__ import annotations

from typing import ClassVar


class FedsprigError(Exception):
    """Root of every error that a user can cause or mend."""

    exit_code: ClassVar[int] = 1


class UnknownNameError(FedsprigError):
    """A name that no registry knows (scorer, codec, adapter kind, camera, ...)."""

    exit_code = 2


class UnknownModelError(UnknownNameError):
    """A base model that cannot be built by name."""

    exit_code = 10


class WeightsError(FedsprigError):
    """Weights that are absent or do not fit the model."""

    exit_code = 11


class PlanError(FedsprigError):
    """A group plan that is malformed or does not fit the model, mask or scores."""

    exit_code = 12


class AdapterError(FedsprigError):
    """An adapter that cannot be attached, merged or loaded."""

    exit_code = 13


class ScoreError(FedsprigError):
    """Scores that are not finite or cannot be computed."""

    exit_code = 14


class DataError(FedsprigError):
    """A data set that cannot be used."""

    exit_code = 20


class UnreadablePictureError(DataError):
    """A picture that cannot be decoded."""

    exit_code = 21


class TooFewClassesError(DataError):
    """A data set with no class or one."""

    exit_code = 22


class LabelRangeError(DataError):
    """A label that no class has."""

    exit_code = 23


class MissingSplitError(DataError):
    """A data set without the split that was asked for."""

    exit_code = 24


class BudgetError(FedsprigError):
    """A budget that is malformed."""

    exit_code = 30


class InfeasibleBudgetError(BudgetError):
    """A budget that no mask can meet."""

    exit_code = 31


class ArtifactError(FedsprigError):
    """Bytes that are no valid artefact."""

    exit_code = 40


class TruncatedArtifactError(ArtifactError):
    """An artefact that ends too early."""

    exit_code = 41


class DigestMismatchError(ArtifactError):
    """Bytes whose digest is not the one they are stored or announced under."""

    exit_code = 42


class LimitError(ArtifactError):
    """An artefact larger than the reader allows."""

    exit_code = 43


class UpdateError(FedsprigError):
    """An update that cannot be applied."""

    exit_code = 50


class NonFiniteUpdateError(UpdateError):
    """An update that holds NaN or an infinity."""

    exit_code = 51


class StaleUpdateError(UpdateError):
    """An update against another state than the current one."""

    exit_code = 52


class UpdateShapeError(UpdateError):
    """An update whose tensors are not those of the adapter."""

    exit_code = 53


class MessageError(FedsprigError):
    """A message between server and device that breaks the protocol."""

    exit_code = 54


class MissingNetworkError(MessageError):
    """A request about a sub-network that the device does not have (any more)."""

    exit_code = 55


class MissingPartError(MessageError):
    """A package that leaves out a plan or a base model that the device does not have."""

    exit_code = 56


class ScenarioError(FedsprigError):
    """A scenario file that cannot be run."""

    exit_code = 60


class LibraryError(FedsprigError):
    """A library that cannot be opened, read or written."""

    exit_code = 70


class SketchError(LibraryError):
    """A task sketch that is malformed or cannot be made."""

    exit_code = 71


class ProbeMismatchError(SketchError):
    """Sketches that were made with different probes, and so cannot be compared."""

    exit_code = 72


class NewerSchemaError(LibraryError):
    """A library that a later version of fedsprig wrote."""

    exit_code = 73


class RoundConflictError(LibraryError):
    """A round that contradicts what the library holds: another result, a gap, or a stale record."""

    exit_code = 74


class RunError(FedsprigError):
    """A run that cannot start or go on."""

    exit_code = 80


class TrainingError(RunError):
    """Local training that cannot start: too few pictures, nothing to train, a bad setting."""

    exit_code = 81


class NonFiniteLossError(TrainingError):
    """Local training that diverged."""

    exit_code = 82
