"""What a faulty or hostile device sends is refused by name; the task goes on without it.

One device of task ``low`` misbehaves. Whatever it sends, task ``high`` is finished and published,
the library holds together, and what happened is said in one line.
"""

import dataclasses
import json
import shutil
import threading

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsprig.artifacts import pack, unpack
from fedsprig.errors import RunError
from fedsprig.wire import DESCRIBE, EVALUATE, INSTALL, KINDS, PROFILE, ROUND
from fedsprig.wire import device_pb2 as pb
from fedsprig_client.app import relay
from fedsprig_server.app import app as server_app
from fedsprig_server.config import ServerConfig
from fedsprig_server.ledger import Ledger
from fedsprig_server.library import Library
from fedsprig_sim.runtimes.in_process import FIRST_NODE, run_apps_in_process

TRAITOR = 1  # the number of the device that misbehaves
ASKED = (DESCRIBE, INSTALL, ROUND, EVALUATE)
REPLIES = {
    PROFILE: pb.ProfileReply,
    DESCRIBE: pb.DescribeReply,
    INSTALL: pb.InstallReply,
    ROUND: pb.RoundReply,
    EVALUATE: pb.EvaluateReply,
}


def client_that(misbehaves, seen):
    """The real ClientApp, but the traitor's answers go through ``misbehaves``."""
    app = ClientApp()

    def answer(message, context):
        seen(message, context)
        answered = relay(message, context)
        if context.node_config["partition-id"] == TRAITOR:
            return misbehaves(message, answered, context)
        return answered

    for kind in KINDS:
        category, _, action = kind.partition(".")
        getattr(app, category)(action)(answer)
    return app


def spoiling(spoil, kinds=ASKED):
    """Misbehaviour that changes the bytes of answers: ``spoil(kind, body, blob)``."""

    def misbehave(message, answer, _):
        kind = message.metadata.message_type
        if kind not in kinds:
            return answer
        record = answer.content["message"]
        assert "refusal" not in record, record["refusal"]  # else the device refused, not the server
        blob = answer.content["blob"]["blob"].data if "blob" in answer.content else b""
        return reply(message, *spoil(kind, record["body"], blob))

    return misbehave


def reply(message, body, blob=b""):
    content = RecordDict({"message": ConfigRecord({"body": body})})
    if blob:
        content["blob"] = ArrayRecord({"blob": Array("uint8", (len(blob),), "bytes", blob)})
    return Message(content, reply_to=message)


def in_body(change):
    """A spoil that changes the parsed body."""

    def spoil(kind, body, blob):
        message = REPLIES[kind].FromString(body)
        change(message)
        return message.SerializeToString(), blob

    return spoil


def in_arrays(change):
    """A spoil that changes the blob's arrays."""

    def spoil(_, body, blob):
        arrays, metadata = unpack(blob)
        return body, pack({name: change(name, a) for name, a in arrays.items()}, metadata)

    return spoil


def in_metadata(change):
    """A spoil that changes the blob's metadata."""

    def spoil(_, body, blob):
        arrays, metadata = unpack(blob)
        return body, pack(arrays, {name: change(name, text) for name, text in metadata.items()})

    return spoil


def hopeless_numbers(message):
    """Numbers that are none, wherever the body has floats."""
    message.seconds = np.inf
    if isinstance(message, pb.InstallReply):
        message.projected_variance = -1.0
    if isinstance(message, pb.RoundReply | pb.EvaluateReply):
        message.evaluation.accuracy = np.nan


def floats(value):
    def change(_, array):
        if array.dtype.kind != "f":
            return array
        most = np.finfo(array.dtype).max
        return np.full_like(array, value if not np.isfinite(value) else np.clip(value, -most, most))

    return change


def counts(value):
    def change(name, array):
        return np.full_like(array, value) if name == "counts" else array

    return change


def wrapping_counts(name, array):
    """Counts whose sum overflows to a small one."""
    if name != "counts":
        return array
    return np.array([2**63 - 1, 2**63 - 1, *[2] * (len(array) - 2)], array.dtype)


def one_class_more(name, array):
    if name in ("counts", "prototypes"):
        return np.concatenate([array, array[-1:]])
    return array


def one_feature_less(name, array):
    return array[:, :-1] if name == "prototypes" else array


def other_classes(name, text):
    return json.dumps(["x", *json.loads(text)[1:]]) if name == "classes" else text


def no_digest(_, text):
    """The update that fits another round, the sketch of another probe."""
    is_digest = len(text) >= 16 and set(text) <= set("0123456789abcdef")
    return "0" * len(text) if is_digest else text


def everywhere(word):
    return dict.fromkeys(ASKED, word)


@pytest.fixture
def prepared(world, tmp_path):
    """A library and devices of one's own; half of a task's devices are enough.

    The two devices of ``low`` have one budget: one that is refused at first is of a width that
    another installed, and so is asked again.
    """
    shutil.copytree(world, tmp_path / "world")
    files = [tmp_path / "world" / "fleet" / f"{n:05d}" / "device.toml" for n in (0, TRAITOR)]
    honest, traitor = (path.read_text() for path in files)
    limit = "macs_ratio = 0.5"
    assert limit in traitor
    assert "macs_ratio = 0.2" in honest
    files[0].write_text(honest.replace("macs_ratio = 0.2", limit))
    config = ServerConfig.load(world / "server.json")
    config = dataclasses.replace(
        config,
        library=tmp_path / "world" / "library",
        arms=("one_shot",),
        rounds=dataclasses.replace(config.rounds, count=1, quorum=0.5, deadline_seconds=120),
    )
    return tmp_path / "world", config


def run(folder, config, misbehaves, more_nodes=(), seen=lambda message, context: None):
    config.save(folder / "server.json")
    run_apps_in_process(
        server_app,
        client_that(misbehaves, seen),
        [*({"partition-id": number} for number in range(4)), *more_nodes],
        {"fleet": str(folder / "fleet"), "server-config": str(folder / "server.json")},
        workers=2,
    )


def refusals(library, task):
    """What was refused of each kind of message, in words."""
    described = Ledger.from_json(library.run(task).state["ledger"]).refusals
    ledger = Ledger.from_json(library.run(f"{task}.one_shot").state["ledger"])
    assert all("\n" not in line for line in [*described, *ledger.refusals])
    json.dumps(ledger.to_json(), allow_nan=False)
    return described, ledger.refusals


def check_the_rest(library):
    """Whatever the traitor did: the other task is published, and nothing is damaged."""
    assert library.verify() == []
    assert library.entry("high").metrics["devices"] == 2.0
    assert library.run("high.one_shot").phase == "done"
    assert refusals(library, "high") == ([], [])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda _, body, blob: (b"\xff" * 40, blob), everywhere("MessageError")),
        (lambda _, body, blob: (body[:-1], blob), everywhere("MessageError")),
        (lambda _, body, blob: (b"\0" * (2 << 20), blob), everywhere("LimitError")),
        # Without a body there is no accuracy; seconds and a spread of zero can be.
        (lambda _, body, blob: (b"", blob), {ROUND: "MessageError", EVALUATE: "MessageError"}),
        # A device's own seconds are only a note; infinite ones are not noted.
        (
            in_body(hopeless_numbers),
            {INSTALL: "NonFinite", ROUND: "MessageError", EVALUATE: "MessageError"},
        ),
        (lambda _, body, blob: (body, np.random.default_rng(0).bytes(999)), everywhere("Error: ")),
        (lambda _, body, blob: (body, b""), everywhere("TruncatedArtifactError")),
        (lambda _, body, blob: (body, blob[:-20]), everywhere("TruncatedArtifactError")),
        (lambda _, body, blob: (body, pack({})), everywhere("Error: ")),
        (in_arrays(floats(np.nan)), everywhere("Error: ")),
        (in_arrays(floats(np.inf)), everywhere("Error: ")),
        (in_arrays(lambda _, array: array[:-1]), everywhere("Error: ")),
        (in_arrays(lambda _, array: array[None]), everywhere("Error: ")),
        (in_arrays(lambda _, array: array[:0]), everywhere("Error: ")),
        (in_arrays(lambda _, array: array.astype(np.int32)), everywhere("Error: ")),
        (in_arrays(one_class_more), {DESCRIBE: "SketchError", INSTALL: "MessageError"}),
        (in_arrays(one_feature_less), {DESCRIBE: "MessageError", INSTALL: "MessageError"}),
        (in_arrays(counts(2**62)), {DESCRIBE: "MessageError", INSTALL: "MessageError"}),
        (in_arrays(wrapping_counts), {DESCRIBE: "MessageError", INSTALL: "MessageError"}),
        (in_arrays(counts(-1)), {DESCRIBE: "SketchError", INSTALL: "MessageError"}),
        (in_arrays(counts(0)), {DESCRIBE: "SketchError", INSTALL: "MessageError"}),
        (in_metadata(other_classes), {DESCRIBE: "MessageError"}),
        (
            in_metadata(no_digest),
            {DESCRIBE: "MessageError", ROUND: "StaleUpdateError", EVALUATE: "PlanError"},
        ),
    ],
    ids=[
        "random body",
        "truncated body",
        "huge body",
        "empty body",
        "hopeless numbers",
        "random blob",
        "empty blob",
        "truncated blob",
        "no arrays",
        "NaN",
        "infinity",
        "shorter arrays",
        "more axes",
        "no rows",
        "other dtypes",
        "one class more",
        "one feature less",
        "huge counts",
        "wrapping counts",
        "negative counts",
        "no counts",
        "other classes",
        "another digest",
    ],
)
def test_a_bad_answer_is_named_and_left_out(prepared, spoil, words):
    folder, config = prepared
    run(folder, config, spoiling(spoil))
    with Library(folder / "library") as library:
        check_the_rest(library)
        described, later = refusals(library, "low")
        found = library.entry("low").metrics["devices"]
    assert len(described) == (DESCRIBE in words)
    expected = [words[kind] for kind in (DESCRIBE, INSTALL, ROUND, EVALUATE) if kind in words]
    for refusal, word in zip([*described, *later], expected, strict=True):
        assert refusal.startswith("low.device-2: ")
        assert word in refusal
    assert found == (1.0 if EVALUATE in words else 2.0)


@pytest.mark.parametrize("value", [3e38, -3e38, 1e-45, 0.0])
def test_finite_nonsense_ends_in_a_result_or_in_a_named_error(prepared, value):
    """What has the right form may ruin its own task, but nothing else."""
    folder, config = prepared
    said = ""
    try:
        run(folder, config, spoiling(in_arrays(floats(value))))
    except RunError as error:
        said = str(error)
    assert not said or "1 of 2 tasks failed; the first: " in said
    assert said.isprintable()
    with Library(folder / "library") as library:
        check_the_rest(library)


def empty(message, answer, _):
    return Message(RecordDict(), reply_to=message)


def a_number_for_a_body(message, answer, _):
    return reply(message, 10**12)


def a_list_for_a_body(message, answer, _):
    return reply(message, [300, -1])


def an_unnamed_blob(message, answer, _):
    content = RecordDict({"message": ConfigRecord({"body": b""})})
    content["blob"] = ArrayRecord({"other": Array("uint8", (1,), "bytes", b"x")})
    return Message(content, reply_to=message)


def long_words(message, answer, _):
    record = ConfigRecord({"refusal": "no\nERROR forged line\x1b[2J " * 10_000})
    return Message(RecordDict({"message": record}), reply_to=message)


def crash(message, answer, _):
    raise ValueError("boom on the device")


@pytest.mark.parametrize(
    ("misbehaves", "words"),
    [
        (empty, "malformed answer"),
        (a_number_for_a_body, "malformed answer"),
        (a_list_for_a_body, "malformed answer"),
        (an_unnamed_blob, "malformed answer"),
        (long_words, "no ERROR forged line"),
        (crash, "boom on the device"),
    ],
)
def test_what_is_no_answer_at_all_is_named_and_left_out(prepared, misbehaves, words):
    folder, config = prepared

    def after_the_profile(message, answer, context):
        if message.metadata.message_type == PROFILE:
            return answer
        return misbehaves(message, answer, context)

    run(folder, config, after_the_profile)
    with Library(folder / "library") as library:
        check_the_rest(library)
        described, later = refusals(library, "low")
        assert library.entry("low").metrics["devices"] == 1.0
    assert len(described) == 1
    assert len(later) == 3
    for refusal in [*described, *later]:
        assert refusal.startswith("low.device-2: ")
        assert words in refusal
        assert refusal.isprintable()
        assert len(refusal) < 400


def profile(**changes):
    """A profile that differs from the traitor's own one."""

    def change(message):
        message.device = "stranger"
        for name, value in changes.items():
            if isinstance(value, list):
                getattr(message, name)[:] = value
            else:
                setattr(message, name, value)

    return in_body(change)


PROFILES = {
    "random": lambda _, body, blob: (b"\xff" * 40, blob),
    "truncated": lambda _, body, blob: (body[:-1], blob),
    "empty": lambda _, body, blob: (b"", blob),
    "huge": lambda _, body, blob: (b"\0" * (2 << 20), blob),
    "nameless": profile(device=""),
    "other task": profile(task="nothing"),
    "no pictures": profile(pictures=0),
    "one class": profile(classes=["0"]),
    "same classes": profile(classes=["0", "0"]),
    "other classes": profile(classes=["2", "1", "0"]),
    "many classes": profile(classes=[str(number) for number in range(20_000)]),
    "no budget": in_body(lambda message: setattr(message.budget, "macs_ratio", np.nan)),
}


def test_a_bad_profile_is_named_and_not_admitted(prepared, caplog):
    """One more node for each of them, while ``low`` waits for a device that never comes."""
    folder, config = prepared
    rounds = dataclasses.replace(config.rounds, join_seconds=5)
    config = dataclasses.replace(config, tasks=config.tasks | {"low": 3}, rounds=rounds)
    extra = [{"partition-id": TRAITOR, "spoil": name} for name in PROFILES]

    def misbehave(message, answer, context):
        spoil = context.node_config.get("spoil")
        return spoiling(PROFILES[spoil], [PROFILE])(message, answer, context) if spoil else answer

    run(folder, config, misbehave, extra)
    with Library(folder / "library") as library:
        check_the_rest(library)
        assert library.entry("low").metrics["devices"] == 2.0
        assert refusals(library, "low") == ([], [])
    for number, name in enumerate(PROFILES, start=4):
        said = [m for m in caplog.messages if m.startswith(f"node {FIRST_NODE + number} ")]
        assert len(said) == 1, name
        assert said[0].isprintable()


def test_a_silent_device_does_not_cost_the_deadline_where_others_are_enough(prepared, monkeypatch):
    """It answers its round only when the others are asked for something later."""
    monkeypatch.setattr("fedsprig_server.cohort.GRACE_SECONDS", 0.1)
    folder, config = prepared
    gone_on = threading.Event()

    def seen(message, context):
        honest = context.node_config["partition-id"] == 0
        if honest and message.metadata.message_type == EVALUATE:
            gone_on.set()

    def ponder(message, answer, _):
        if message.metadata.message_type == ROUND:
            assert gone_on.wait(timeout=60)
        return answer

    run(folder, config, ponder, seen=seen)
    with Library(folder / "library") as library:
        assert library.verify() == []
        assert library.run("low.one_shot").phase == "done"
        _, later = refusals(library, "low")
    assert "low.device-2: no answer in time" in later


def test_without_quorum_the_task_fails_in_one_line_and_can_be_resumed(prepared):
    folder, config = prepared
    strict = dataclasses.replace(config, rounds=dataclasses.replace(config.rounds, quorum=1.0))
    with pytest.raises(RunError, match="quorum") as caught:
        run(folder, strict, spoiling(in_arrays(floats(np.nan)), [ROUND]))
    assert "\n" not in str(caught.value)
    with Library(folder / "library") as library:
        check_the_rest(library)
        assert library.latest_round("low.one_shot").round == 0
    run(folder, strict, lambda message, answer, _: answer)
    with Library(folder / "library") as library:
        assert library.run("low.one_shot").phase == "done"
        assert library.entry("low").metrics["devices"] == 2.0
