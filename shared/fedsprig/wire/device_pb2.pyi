from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Budget(_message.Message):
    __slots__ = ("weight_bytes", "macs", "peak_bytes", "latency_ms", "units", "macs_ratio", "parameters_ratio")
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MACS_FIELD_NUMBER: _ClassVar[int]
    PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    MACS_RATIO_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_RATIO_FIELD_NUMBER: _ClassVar[int]
    weight_bytes: int
    macs: int
    peak_bytes: int
    latency_ms: float
    units: float
    macs_ratio: float
    parameters_ratio: float
    def __init__(self, weight_bytes: _Optional[int] = ..., macs: _Optional[int] = ..., peak_bytes: _Optional[int] = ..., latency_ms: _Optional[float] = ..., units: _Optional[float] = ..., macs_ratio: _Optional[float] = ..., parameters_ratio: _Optional[float] = ...) -> None: ...

class AdapterSettings(_message.Message):
    __slots__ = ("kind", "rank", "seed", "train_a", "local_statistics", "rank_rule", "unadapted")
    KIND_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TRAIN_A_FIELD_NUMBER: _ClassVar[int]
    LOCAL_STATISTICS_FIELD_NUMBER: _ClassVar[int]
    RANK_RULE_FIELD_NUMBER: _ClassVar[int]
    UNADAPTED_FIELD_NUMBER: _ClassVar[int]
    kind: str
    rank: int
    seed: int
    train_a: bool
    local_statistics: bool
    rank_rule: str
    unadapted: str
    def __init__(self, kind: _Optional[str] = ..., rank: _Optional[int] = ..., seed: _Optional[int] = ..., train_a: _Optional[bool] = ..., local_statistics: _Optional[bool] = ..., rank_rule: _Optional[str] = ..., unadapted: _Optional[str] = ...) -> None: ...

class SubNetwork(_message.Message):
    __slots__ = ("model", "num_classes", "plan_digest", "plan", "mask", "weights", "adapter", "base", "codec", "content")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NUM_CLASSES_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    model: str
    num_classes: int
    plan_digest: str
    plan: bytes
    mask: bytes
    weights: bytes
    adapter: AdapterSettings
    base: str
    codec: str
    content: str
    def __init__(self, model: _Optional[str] = ..., num_classes: _Optional[int] = ..., plan_digest: _Optional[str] = ..., plan: _Optional[bytes] = ..., mask: _Optional[bytes] = ..., weights: _Optional[bytes] = ..., adapter: _Optional[_Union[AdapterSettings, _Mapping]] = ..., base: _Optional[str] = ..., codec: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class ProfileRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ProfileReply(_message.Message):
    __slots__ = ("device", "task", "classes", "pictures", "budget", "cores", "memory_bytes", "plans", "bases")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PLANS_FIELD_NUMBER: _ClassVar[int]
    BASES_FIELD_NUMBER: _ClassVar[int]
    device: str
    task: str
    classes: _containers.RepeatedScalarFieldContainer[str]
    pictures: int
    budget: Budget
    cores: int
    memory_bytes: int
    plans: _containers.RepeatedScalarFieldContainer[str]
    bases: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, device: _Optional[str] = ..., task: _Optional[str] = ..., classes: _Optional[_Iterable[str]] = ..., pictures: _Optional[int] = ..., budget: _Optional[_Union[Budget, _Mapping]] = ..., cores: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., plans: _Optional[_Iterable[str]] = ..., bases: _Optional[_Iterable[str]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("probe", "noise", "sent", "keep")
    PROBE_FIELD_NUMBER: _ClassVar[int]
    NOISE_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    probe: str
    noise: float
    sent: str
    keep: bool
    def __init__(self, probe: _Optional[str] = ..., noise: _Optional[float] = ..., sent: _Optional[str] = ..., keep: _Optional[bool] = ...) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("seconds",)
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    def __init__(self, seconds: _Optional[float] = ...) -> None: ...

class CompareRequest(_message.Message):
    __slots__ = ("probe", "value")
    PROBE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    probe: str
    value: str
    def __init__(self, probe: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class CompareReply(_message.Message):
    __slots__ = ("pictures", "seconds", "values")
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    pictures: int
    seconds: float
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, pictures: _Optional[int] = ..., seconds: _Optional[float] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class InstallRequest(_message.Message):
    __slots__ = ("run", "seed")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    run: str
    seed: int
    def __init__(self, run: _Optional[str] = ..., seed: _Optional[int] = ...) -> None: ...

class InstallReply(_message.Message):
    __slots__ = ("pictures", "seconds", "projected_variance")
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    PROJECTED_VARIANCE_FIELD_NUMBER: _ClassVar[int]
    pictures: int
    seconds: float
    projected_variance: float
    def __init__(self, pictures: _Optional[int] = ..., seconds: _Optional[float] = ..., projected_variance: _Optional[float] = ...) -> None: ...

class LocalTraining(_message.Message):
    __slots__ = ("epochs", "steps", "batch_size", "learning_rate", "momentum", "weight_decay", "augment", "schedule", "trains", "optimiser", "head_learning_rate_scale")
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    AUGMENT_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    TRAINS_FIELD_NUMBER: _ClassVar[int]
    OPTIMISER_FIELD_NUMBER: _ClassVar[int]
    HEAD_LEARNING_RATE_SCALE_FIELD_NUMBER: _ClassVar[int]
    epochs: int
    steps: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    augment: str
    schedule: str
    trains: str
    optimiser: str
    head_learning_rate_scale: float
    def __init__(self, epochs: _Optional[int] = ..., steps: _Optional[int] = ..., batch_size: _Optional[int] = ..., learning_rate: _Optional[float] = ..., momentum: _Optional[float] = ..., weight_decay: _Optional[float] = ..., augment: _Optional[str] = ..., schedule: _Optional[str] = ..., trains: _Optional[str] = ..., optimiser: _Optional[str] = ..., head_learning_rate_scale: _Optional[float] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("accuracy", "loss", "pictures")
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    accuracy: float
    loss: float
    pictures: int
    def __init__(self, accuracy: _Optional[float] = ..., loss: _Optional[float] = ..., pictures: _Optional[int] = ...) -> None: ...

class RoundRequest(_message.Message):
    __slots__ = ("run", "round", "adapter", "training", "codec", "evaluate", "seed", "network")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    adapter: str
    training: LocalTraining
    codec: str
    evaluate: bool
    seed: int
    network: str
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., adapter: _Optional[str] = ..., training: _Optional[_Union[LocalTraining, _Mapping]] = ..., codec: _Optional[str] = ..., evaluate: _Optional[bool] = ..., seed: _Optional[int] = ..., network: _Optional[str] = ...) -> None: ...

class RoundReply(_message.Message):
    __slots__ = ("pictures", "loss", "seconds", "evaluation")
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    pictures: int
    loss: float
    seconds: float
    evaluation: Evaluation
    def __init__(self, pictures: _Optional[int] = ..., loss: _Optional[float] = ..., seconds: _Optional[float] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("run", "round", "adapter", "scorer", "seed", "keep", "network")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    SCORER_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    adapter: str
    scorer: str
    seed: int
    keep: bool
    network: str
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., adapter: _Optional[str] = ..., scorer: _Optional[str] = ..., seed: _Optional[int] = ..., keep: _Optional[bool] = ..., network: _Optional[str] = ...) -> None: ...

class EvaluateReply(_message.Message):
    __slots__ = ("evaluation", "seconds")
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    evaluation: Evaluation
    seconds: float
    def __init__(self, evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., seconds: _Optional[float] = ...) -> None: ...

class AttentionRequest(_message.Message):
    __slots__ = ("run", "round", "adapter", "network", "power", "form", "pictures", "seed")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    POWER_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    adapter: str
    network: str
    power: float
    form: str
    pictures: int
    seed: int
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., adapter: _Optional[str] = ..., network: _Optional[str] = ..., power: _Optional[float] = ..., form: _Optional[str] = ..., pictures: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class AttentionReply(_message.Message):
    __slots__ = ("pictures", "seconds", "evaluation")
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    pictures: int
    seconds: float
    evaluation: Evaluation
    def __init__(self, pictures: _Optional[int] = ..., seconds: _Optional[float] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ...) -> None: ...

class CutRequest(_message.Message):
    __slots__ = ("run", "round", "adapter", "mask", "content")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    adapter: str
    mask: bytes
    content: str
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., adapter: _Optional[str] = ..., mask: _Optional[bytes] = ..., content: _Optional[str] = ...) -> None: ...

class CutReply(_message.Message):
    __slots__ = ("pictures", "seconds")
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    pictures: int
    seconds: float
    def __init__(self, pictures: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...
