"""A device answers every kind of message from its file, its pictures and its store alone."""

import dataclasses
import inspect
import textwrap

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.torch import save_file

from fedsprig.adapters import adapter_state, load_adapter_state
from fedsprig.artifacts import unpack
from fedsprig.artifacts.digest import digest, state_digest
from fedsprig.bases import BaseWeights, leave_out_base
from fedsprig.errors import (
    AdapterError,
    BudgetError,
    DataError,
    DigestMismatchError,
    FedsprigError,
    MessageError,
    MissingNetworkError,
    MissingPartError,
    PlanError,
    ScoreError,
    StaleUpdateError,
    TooFewClassesError,
    UnknownNameError,
)
from fedsprig.graph import GroupPlan, kept_index, shrink_plan, trace_groups
from fedsprig.masks import Mask, ScoreSet
from fedsprig.models import build
from fedsprig.pruning.aap.attention import attention_sums
from fedsprig.subnetwork import AdapterConfig, build_subnetwork, pack_subnetwork
from fedsprig.tasks import Features, TaskSketch
from fedsprig.tasks.similarity import HEAD_VALUES, Head
from fedsprig.tasks.similarity.packed_heads import pack_heads, unpack_heads
from fedsprig.training import evaluate, features, read, recalibrate, to_tensor
from fedsprig.updates import decode_state, decode_update, encode_state
from fedsprig.wire import (
    ATTENTION,
    COMPARE,
    CUT,
    DESCRIBE,
    EVALUATE,
    INSTALL,
    PROFILE,
    ROUND,
    Envelope,
)
from fedsprig.wire import device_pb2 as pb
from fedsprig_client import config
from fedsprig_client.config import DeviceConfig
from fedsprig_client.device import Device
from fedsprig_client.store import DeviceStore

MODEL = "cifar_resnet20"


@pytest.fixture(scope="module")
def package():
    module = build(MODEL, num_classes=2)
    plan = trace_groups(module, torch.zeros(1, 3, 32, 32), name=MODEL)
    mask = Mask.random(plan, 0.4, np.random.default_rng(0))
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    return pack_subnetwork(plan, mask, state, num_classes=3, adapter=AdapterConfig(rank=2))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    images = (
        rng.integers(0, 80, (24, 8, 8, 3), dtype=np.uint8)
        + (80 * labels).astype(np.uint8)[:, None, None, None]
    )
    np.savez(
        tmp_path / "pictures.npz",
        x_train=images,
        y_train=labels,
        x_test=images[:6],
        y_test=labels[:6],
        classes=np.array(["dark", "grey", "bright"]),
    )
    write(tmp_path)
    return tmp_path


def write(folder, **changes):
    settings = {
        "name": "gate-3",
        "task": "shades",
        "threads": 1,
        "data": {"kind": "npz", "path": "pictures.npz"},
        "evaluation": {"kind": "npz", "path": "pictures.npz", "split": "test"},
        "budget": {"macs_ratio": 0.25},
    }
    kept = {k: v for k, v in (settings | changes).items() if v is not None}
    (folder / "device.toml").write_text(tomli_w.dumps(kept))
    return folder / "device.toml"


def ask(folder, kind, message, blob=b""):
    """A new Device for every message, as a new process would be."""
    device = Device.open(folder / "device.toml")
    return device.answer(Envelope(kind, message.SerializeToString(), blob))


def start(package):
    """The adapter that the server would send: a head that is not zero."""
    module = build_subnetwork(package, plan_of=lambda _: None).module
    state = {name: value.numpy() for name, value in adapter_state(module).items()}
    state["linear.weight"] = (
        np.random.default_rng(1).normal(size=state["linear.weight"].shape).astype(np.float32)
    )
    return state, encode_state(state, "float32")


def test_it_says_who_it_is(folder):
    reply = pb.ProfileReply.FromString(ask(folder, PROFILE, pb.ProfileRequest()).body)
    assert (reply.device, reply.task, reply.pictures) == ("gate-3", "shades", 24)
    assert list(reply.classes) == ["dark", "grey", "bright"]
    assert reply.budget.macs_ratio == 0.25
    assert not reply.budget.HasField("weight_bytes")


def test_it_describes_its_pictures_and_keeps_the_plan(folder, package):
    message = pb.SubNetwork.FromString(package)
    message.ClearField("adapter")
    probe = message.SerializeToString()
    answer = ask(folder, DESCRIBE, pb.DescribeRequest(probe=digest(probe)), probe)
    sketch = TaskSketch.from_bytes(answer.blob)
    assert sketch.counts.tolist() == [8, 8, 8]
    assert sketch.probe == digest(probe)
    profile = pb.ProfileReply.FromString(ask(folder, PROFILE, pb.ProfileRequest()).body)
    assert list(profile.plans) == [message.plan_digest]
    with pytest.raises(MessageError, match="another"):
        ask(folder, DESCRIBE, pb.DescribeRequest(probe="0" * 64), probe)


def test_a_plan_is_written_once_and_only_when_the_package_brings_it(folder, package):
    ask(folder, INSTALL, pb.InstallRequest(run="a"), package)
    (plan,) = (folder / "store" / "plans").iterdir()
    written = plan.stat()
    short = pb.SubNetwork.FromString(package)
    short.ClearField("plan")
    for blob in (package, short.SerializeToString()):
        ask(folder, INSTALL, pb.InstallRequest(run="b"), blob)
        assert list((folder / "store" / "plans").iterdir()) == [plan]
        now = plan.stat()
        assert (now.st_ino, now.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    plan.write_bytes(b"damaged")
    ask(folder, INSTALL, pb.InstallRequest(run="a"), package)
    assert digest(plan.read_bytes()) == plan.name


def probe_of(package):
    message = pb.SubNetwork.FromString(package)
    message.ClearField("adapter")
    return message.SerializeToString()


def some_heads(package, classes=3):
    """Classifiers on the probe's features."""
    network = build_subnetwork(package, plan_of=lambda _: None)
    features = network.module.get_submodule(network.card.head).in_features
    rng = np.random.default_rng(5)
    return [
        Head(
            rng.normal(size=(classes + extra, features)).astype(np.float32),
            rng.normal(size=classes + extra).astype(np.float32),
        )
        for extra in (0, 1)
    ]


def compared(folder, probe, blob, value="leep"):
    wanted = pb.CompareRequest(probe=digest(probe), value=value)
    return pb.CompareReply.FromString(ask(folder, COMPARE, wanted, blob).body)


@pytest.mark.parametrize("value", ["leep", "h_score"])
def test_it_says_what_classifiers_are_worth_on_the_features_that_it_kept(folder, package, value):
    probe = probe_of(package)
    # What it keeps is as the probe made it, whatever noise there is on the sketch.
    ask(folder, DESCRIBE, pb.DescribeRequest(probe=digest(probe), noise=0.5, keep=True), probe)
    heads, _ = unpack_heads(pack_heads(some_heads(package)))
    reply = compared(folder, probe, pack_heads(some_heads(package)), value)
    network = build_subnetwork(probe, plan_of=lambda _: None)
    device = Device.open(folder / "device.toml")
    images = to_tensor(device.pictures.images, network.card)
    vectors = features(network.module, network.card.head, images).numpy()
    seen = Features(vectors, device.pictures.labels.astype(np.int64))
    expected = [HEAD_VALUES[value](head.outputs(vectors), seen.labels) for head in heads]
    assert reply.pictures == 24
    np.testing.assert_allclose(reply.values, expected, rtol=1e-3)
    assert reply.values[0] != reply.values[1]


def test_lost_features_are_made_again_from_the_whole_probe(folder, package):
    probe = probe_of(package)
    heads = some_heads(package)
    short, whole = pack_heads(heads), pack_heads(heads, probe)
    ask(folder, DESCRIBE, pb.DescribeRequest(probe=digest(probe)), probe)
    kept = folder / "store" / "features"
    assert not kept.exists()  # nobody wanted them
    with pytest.raises(MissingPartError, match="the whole probe"):
        compared(folder, probe, short)
    first = compared(folder, probe, whole)
    assert kept.exists()
    assert compared(folder, probe, short).values == first.values
    data = kept.read_bytes()
    kept.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(MissingPartError):
        compared(folder, probe, short)
    assert compared(folder, probe, whole).values == first.values
    assert kept.read_bytes() == data
    ask(folder, DESCRIBE, pb.DescribeRequest(probe=digest(probe), keep=True), probe)
    assert kept.read_bytes() == data
    assert compared(folder, probe, short).values == first.values


def test_features_of_another_probe_do_not_answer(folder, package):
    probe = probe_of(package)
    ask(folder, DESCRIBE, pb.DescribeRequest(probe=digest(probe), keep=True), probe)
    heads = some_heads(package)
    with pytest.raises(MissingPartError):
        compared(folder, b"another", pack_heads(heads))
    with pytest.raises(MessageError, match="probe is another"):
        compared(folder, b"another", pack_heads(heads, probe))
    narrow = pack_heads([Head(head.weight[:, :3], head.bias) for head in heads])
    with pytest.raises(MessageError, match="classifiers of 3 features"):
        compared(folder, probe, narrow)
    with pytest.raises(MessageError, match="did you mean 'leep'"):
        compared(folder, probe, pack_heads(heads), "lep")


def described(folder, probe, noise):
    wanted = pb.DescribeRequest(probe=digest(probe), noise=noise)
    return TaskSketch.from_bytes(ask(folder, DESCRIBE, wanted, probe).blob)


def test_noise_is_of_the_device_alone_and_the_same_for_the_same_request(folder, package):
    probe = probe_of(package)
    clean = described(folder, probe, 0.0).prototypes
    assert not (folder / "store" / "secret").exists()
    first = described(folder, probe, 0.5).prototypes
    assert np.array_equal(first, described(folder, probe, 0.5).prototypes)
    drawn = (first - clean) / 0.5
    assert 0.5 < np.std(drawn) / np.sqrt(np.mean(clean**2)) < 2
    # Half the noise is another draw: of one draw at two levels, the noise is their difference.
    assert not np.allclose((described(folder, probe, 0.25).prototypes - clean) / 0.25, drawn)
    # All that the server knows is the same; only what the device keeps is not.
    secret = folder / "store" / "secret"
    assert len(secret.read_bytes()) == 32
    assert secret.stat().st_mode & 0o777 == 0o600
    secret.unlink()
    other = described(folder, probe, 0.5).prototypes
    assert np.abs(np.corrcoef((other - clean).ravel(), drawn.ravel())[0, 1]) < 0.5
    # A simulation names the secret instead.
    write(folder, secret="5e" * 32)
    third = described(folder, probe, 0.5).prototypes
    secret.unlink()
    assert np.array_equal(third, described(folder, probe, 0.5).prototypes)
    assert not np.array_equal(third, other)
    assert not secret.exists()


@pytest.mark.parametrize("noise", [-1.0, float("nan"), float("inf")])
def test_noise_that_is_no_amount_is_refused(folder, package, noise):
    with pytest.raises(FedsprigError, match="noise"):
        described(folder, probe_of(package), noise)


def test_install_gives_class_means_and_statistics_of_its_own_pictures(folder, package):
    answer = ask(folder, INSTALL, pb.InstallRequest(run="shades.one_shot"), package)
    arrays, _ = unpack(answer.blob)
    network = build_subnetwork(package, plan_of=lambda _: None)
    features = network.module.linear.in_features
    assert arrays["prototypes"].shape == (3, features)
    assert arrays["counts"].tolist() == [8, 8, 8]
    names = {name for name in arrays if name.startswith("statistics/")}
    index = kept_index(network.plan, network.mask)
    assert "statistics/bn1.running_mean" in names
    for name in names:
        own = name.removeprefix("statistics/")
        width = index.get(own, {}).get(0)
        assert len(arrays[name]) == (network.plan.shapes[own][0] if width is None else len(width))


def test_a_round_trains_and_the_same_request_gets_the_same_answer(folder, package):
    ask(folder, INSTALL, pb.InstallRequest(run="r"), package)
    state, blob = start(package)
    wanted = pb.RoundRequest(
        run="r",
        round=1,
        adapter=state_digest(state),
        codec="float32",
        evaluate=True,
        training=pb.LocalTraining(
            steps=3, batch_size=8, learning_rate=0.05, schedule="constant", augment="none"
        ),
    )
    answers = [ask(folder, ROUND, wanted, blob) for _ in range(2)]
    assert answers[0].blob == answers[1].blob
    reply = pb.RoundReply.FromString(answers[0].body)
    assert reply.pictures == 24
    assert reply.evaluation.pictures == 6
    shapes = {name: value.shape for name, value in state.items()}
    delta = decode_update(answers[0].blob, shapes=shapes, base_digest=state_digest(state))
    assert np.abs(delta["layer1.0.conv1.adapter_b"]).max() > 0
    assert np.abs(delta["linear.weight"]).max() > 0
    wanted.round = 2
    assert ask(folder, ROUND, wanted, blob).blob != answers[0].blob  # another order of pictures


def packed(package, **adapter):
    """The same sub-network with other settings of its adapter."""
    message = pb.SubNetwork.FromString(package)
    for name, value in adapter.items():
        setattr(message.adapter, name, value)
    return message.SerializeToString()


def trained(folder, package, state, *, run="r", **training):
    """The request of a round, asked twice of new processes, and its one answer."""
    ask(folder, INSTALL, pb.InstallRequest(run=run), package)
    settings = {"steps": 3, "batch_size": 8, "learning_rate": 0.05, "schedule": "constant"}
    wanted = pb.RoundRequest(
        run=run,
        round=1,
        adapter=state_digest(state),
        codec="float32",
        evaluate=True,
        training=pb.LocalTraining(**(settings | {"augment": "none"} | training)),
    )
    first, second = (ask(folder, ROUND, wanted, encode_state(state, "float32")) for _ in range(2))
    assert first.blob == second.blob
    return first


def changes(answer, state, *, without=()):
    """What came back, which must be all of the state but for the names that end in ``without``."""
    shapes = {n: v.shape for n, v in state.items() if not n.endswith(tuple(without))}
    return decode_update(answer.blob, shapes=shapes, base_digest=state_digest(state))


def moved(delta, suffix):
    return any(np.abs(value).max() > 0 for name, value in delta.items() if name.endswith(suffix))


def test_the_factor_that_does_not_train_stays_and_does_not_travel(folder, package):
    package = packed(package, train_a=True)
    state, _ = start(package)
    rng = np.random.default_rng(2)  # while B is zero, A has no gradient
    state |= {
        name: rng.normal(size=value.shape).astype(np.float32) / 50
        for name, value in state.items()
        if name.endswith("adapter_b")
    }
    sizes = {}
    for trains, other in (("a", "adapter_b"), ("b", "adapter_a")):
        answer = trained(folder, package, state, trains=trains)
        delta = changes(answer, state, without=[other])
        assert moved(delta, f"adapter_{trains}")
        assert moved(delta, "linear.weight")
        assert moved(delta, "bn1.weight")
        sizes[trains] = len(answer.blob)
    answers = {both: trained(folder, package, state, trains=both) for both in ("", "both")}
    assert answers[""].blob == answers["both"].blob
    delta = changes(answers[""], state)
    assert moved(delta, "adapter_a")
    assert moved(delta, "adapter_b")
    assert len(answers[""].blob) > max(sizes.values())


def test_training_b_alone_is_what_training_with_a_fixed_is(folder, package):
    fixed, _ = start(package)
    both, _ = start(packed(package, train_a=True))
    one = changes(trained(folder, package, fixed), fixed)
    other = trained(folder, packed(package, train_a=True), both, trains="b")
    for name, value in changes(other, both, without=["adapter_a"]).items():
        np.testing.assert_array_equal(value, one[name])


def test_a_factor_that_does_not_exist_is_refused(folder, package):
    state, _ = start(package)
    with pytest.raises(MessageError, match=r"no factor is called 'c': use a, b, both"):
        trained(folder, package, state, trains="c")


def test_the_heads_rate_is_scaled_and_nothing_elses(folder, package):
    state, _ = start(package)
    plain, scaled = (
        changes(trained(folder, package, state, run=f"r{scale}", steps=1, **more), state)
        for scale, more in ((1, {}), (3, {"head_learning_rate_scale": 3}))
    )
    for name, value in plain.items():
        factor = 3 if name.startswith("linear") else 1
        np.testing.assert_allclose(scaled[name], factor * value, rtol=1e-4, atol=1e-7)
    assert moved(plain, "linear.weight")


def test_adam_moves_every_value_by_the_learning_rate_at_its_first_step(folder, package):
    state, _ = start(package)
    answer = trained(folder, package, state, steps=1, optimiser="adam", learning_rate=1e-3)
    change = np.abs(changes(answer, state)["linear.bias"])
    np.testing.assert_allclose(change, 1e-3, rtol=1e-3)


STATISTICS = ("running_mean", "running_var")


def test_statistics_of_its_own_never_travel(folder, package):
    local = packed(package, local_statistics=True)
    whole, _ = start(package)
    state = {name: value for name, value in whole.items() if not name.endswith(STATISTICS)}
    arrays, _ = unpack(ask(folder, INSTALL, pb.InstallRequest(run="r"), local).blob)
    assert set(arrays) == {"prototypes", "counts"}
    # What a device measures is what it sends where it is asked to: its own statistics at the start.
    sent, _ = unpack(ask(folder, INSTALL, pb.InstallRequest(run="pooled"), package).blob)
    measured = whole | {
        name.removeprefix("statistics/"): value
        for name, value in sent.items()
        if name.startswith("statistics/")
    }
    alone = trained(folder, local, state)
    pooled = trained(folder, package, measured, run="pooled")
    one, other = changes(alone, state), changes(pooled, measured)
    assert set(other) - set(one) == {name for name in whole if name.endswith(STATISTICS)}
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])
    replies = [pb.RoundReply.FromString(answer.body) for answer in (alone, pooled)]
    assert replies[0].evaluation == replies[1].evaluation
    assert len(alone.blob) < len(pooled.blob)


def test_with_statistics_of_its_own_it_evaluates_what_they_make_of_the_adapter(folder, package):
    local = packed(package, local_statistics=True)
    whole, _ = start(package)
    state = {name: value for name, value in whole.items() if not name.endswith(STATISTICS)}
    other = state | {"bn1.weight": state["bn1.weight"] * 1.5}
    ask(folder, INSTALL, pb.InstallRequest(run="r"), local)

    def answered(values):
        wanted = pb.EvaluateRequest(run="r", adapter=state_digest(values))
        answer = ask(folder, EVALUATE, wanted, encode_state(values, "float32"))
        return pb.EvaluateReply.FromString(answer.body).evaluation.loss

    def expected(values):
        network = build_subnetwork(package, plan_of=lambda _: None)
        load_adapter_state(network.module, whole | values)
        own, check = (read("npz", path=folder / "pictures.npz", split=s) for s in ("train", "test"))
        recalibrate(network.module, to_tensor(own.images, network.card))
        labels = torch.from_numpy(check.labels)
        return evaluate(network.module, to_tensor(check.images, network.card), labels).loss

    assert answered(state) == pytest.approx(expected(state), rel=1e-5)
    assert answered(other) == pytest.approx(expected(other), rel=1e-5)
    assert abs(expected(state) - expected(other)) > 1e-3
    before = answered(state)
    trained(folder, local, other)  # leaves nothing behind that a later answer depends on
    assert answered(state) == before


def test_evaluation_can_score_the_kept_units(folder, package):
    ask(folder, INSTALL, pb.InstallRequest(run="r"), package)
    state, blob = start(package)
    wanted = pb.EvaluateRequest(run="r", adapter=state_digest(state), scorer="taylor")
    answer = ask(folder, EVALUATE, wanted, blob)
    network = build_subnetwork(package, plan_of=lambda _: None)
    from fedsprig.graph import shrink_plan

    scores = ScoreSet.from_bytes(answer.blob, shrink_plan(network.plan, network.mask))
    for name, kept in network.mask.groups.items():
        assert scores.groups[name].shape == (kept.sum(),)


def test_an_adapter_under_another_digest_is_refused(folder, package):
    ask(folder, INSTALL, pb.InstallRequest(run="r"), package)
    _, blob = start(package)
    with pytest.raises(StaleUpdateError):
        ask(folder, EVALUATE, pb.EvaluateRequest(run="r", adapter="0" * 64), blob)


def test_a_run_without_its_network_and_a_damaged_one_are_refused(folder, package):
    state, blob = start(package)
    wanted = pb.EvaluateRequest(run="../../etc", adapter=state_digest(state))
    with pytest.raises(MessageError, match="no sub-network"):
        ask(folder, EVALUATE, wanted, blob)
    ask(folder, INSTALL, pb.InstallRequest(run="../../etc"), package)
    (stored,) = (folder / "store" / "runs").iterdir()
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    with pytest.raises(FedsprigError, match="damaged"):
        ask(folder, EVALUATE, wanted, blob)


def test_unknown_kinds_are_refused(folder):
    with pytest.raises(MessageError, match="release"):
        ask(folder, "query.secrets", pb.ProfileRequest())


def test_without_evaluation_pictures_a_fifth_is_held_out(folder):
    write(folder, evaluation=None)
    device = Device.open(folder / "device.toml")
    reply = pb.ProfileReply.FromString(
        device.answer(Envelope(PROFILE, pb.ProfileRequest().SerializeToString())).body
    )
    assert 18 <= reply.pictures < 24


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"task": None}, DataError, "'task' is missing"),
        ({"colour": 1}, DataError, "unknown key 'colour'"),
        ({"data": "pictures.npz"}, DataError, r"\[data\]"),
        ({"name": 3}, DataError, "name is 3: give a string"),
        ({"task": ["a"]}, DataError, "task is .* give a string"),
        ({"store": 1}, DataError, "store is 1: give a string"),
        ({"threads": "two"}, DataError, "threads is 'two': give a whole number"),
        ({"threads": True}, DataError, "threads is True: give a whole number"),
        ({"threads": -1}, DataError, "threads is -1: use 0"),
        ({"secret": "abc"}, DataError, "64 hexadecimal digits"),
        ({"secret": 5}, DataError, "secret is 5: give a string"),
        ({"data": {"kind": "npz", "pth": "x"}}, DataError, r"\[data\] 'pth': use kind"),
        ({"data": {"path": "x"}}, DataError, r"\[data\] has no key 'kind'"),
        ({"data": {"kind": "npz", "path": 1}}, DataError, "data.path is 1"),
        ({"evaluation": {"kind": "npz", "size": "8"}}, DataError, "evaluation.size is '8'"),
        ({"evaluation": {"kind": "npz", "device": 1}}, DataError, r"\[evaluation\] 'device'"),
        ({"base": {"model": "sprig20"}}, DataError, r"\[base\] has no key 'weights'"),
        ({"base": {"model": 1, "weights": "shipped"}}, DataError, "base.model is 1"),
        ({"base": {"file": "x"}}, DataError, r"\[base\] 'file': use image_size"),
        ({"base": "x"}, DataError, r"write \[base\]"),
        ({"budget": {"mac": 1}}, BudgetError, "mac"),
        ({"budget": {"macs": -1}}, BudgetError, "above zero"),
        ({"budget": {"macs": float("nan")}}, BudgetError, "above zero"),
    ],
)
def test_a_wrong_device_file_is_one_clear_line(folder, changes, error, words):
    with pytest.raises(error, match=words) as caught:
        Device.open(write(folder, **changes))
    assert "\n" not in str(caught.value)


def test_the_documented_example_is_a_device_file(tmp_path):
    """Every key of the text lands where it says."""
    text = inspect.cleandoc(config.__doc__).partition("::\n")[2]
    (tmp_path / "device.toml").write_text(textwrap.dedent(text))
    read_back = DeviceConfig.load(tmp_path / "device.toml")
    assert read_back == DeviceConfig(
        name="gate-3",
        task="parcels",
        data={"kind": "folder", "path": tmp_path / "pictures"},
        evaluation={"kind": "folder", "path": tmp_path / "check"},
        budget={"macs_ratio": 0.25},
        base={
            "model": "torchvision/resnet18",
            "weights": tmp_path / "resnet18.safetensors",
        },
        store=tmp_path / "store",
        threads=1,
    )


def test_the_keys_of_a_table_are_the_arguments_of_what_reads_it():
    assert list(config.SOURCE_KEYS) == list(inspect.signature(read).parameters)
    assert list(config.BASE_KEYS) == list(inspect.signature(BaseWeights.load).parameters)


def test_a_secret_is_not_shown(folder):
    write(folder, secret="5e" * 32)
    assert "5e5e" not in repr(DeviceConfig.load(folder / "device.toml"))


def test_one_class_only_is_refused(folder):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(
        folder / "pictures.npz",
        x_train=images,
        y_train=np.zeros(4, np.int64),
        x_test=images,
        y_test=np.zeros(4, np.int64),
        classes=np.array(["one"]),
    )
    with pytest.raises(TooFewClassesError):
        ask(folder, PROFILE, pb.ProfileRequest())


@pytest.mark.parametrize(
    "training",
    [
        {"steps": 0, "epochs": 0},
        {"steps": 1, "learning_rate": 1e308},
        {"steps": 1, "weight_decay": 1e300},
        {"steps": 1, "batch_size": 0},
        {"steps": 1, "schedule": "never"},
        {"steps": 1, "optimiser": "newton"},
        {"steps": 1, "head_learning_rate_scale": -1.0},
    ],
)
def test_nonsense_training_is_refused_or_harmless(folder, package, training):
    ask(folder, INSTALL, pb.InstallRequest(run="r"), package)
    state, blob = start(package)
    settings = {"batch_size": 8, "learning_rate": 0.1, "schedule": "constant", "augment": "none"}
    wanted = pb.RoundRequest(
        run="r",
        round=1,
        adapter=state_digest(state),
        codec="float32",
        training=pb.LocalTraining(**(settings | training)),
    )
    refusal = None
    try:
        ask(folder, ROUND, wanted, blob)
    except FedsprigError as error:
        refusal = str(error)
    assert refusal is None or "\n" not in refusal
    assert (refusal is None) == (training == {"steps": 0, "epochs": 0})


def test_a_plan_without_a_picture_size_is_refused(package):
    plan = build_subnetwork(package, plan_of=lambda _: None).plan
    for shape in ((), (3,), (1, 3, 0, 32)):
        with pytest.raises(PlanError, match="shape"):
            dataclasses.replace(plan, input_shape=shape)


def test_it_names_the_base_that_it_keeps_and_cuts_its_network_from_it(folder, package, caplog):
    module = build(MODEL, num_classes=5)
    own = BaseWeights.of(MODEL, module, "linear")
    save_file(module.state_dict(), folder / "base.safetensors")
    write(folder, base={"model": MODEL, "weights": "base.safetensors"})
    profile = pb.ProfileReply.FromString(ask(folder, PROFILE, pb.ProfileRequest()).body)
    assert list(profile.bases) == [own.digest]
    message = pb.SubNetwork.FromString(package)
    plan = GroupPlan.from_bytes(message.plan)
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    mask = Mask.from_bytes(message.mask, plan)
    whole = pack_subnetwork(plan, mask, state, num_classes=3, adapter=AdapterConfig(rank=2))
    short = leave_out_base(whole, plan, own.state, own.digest, with_plan=True)
    answers = [ask(folder, INSTALL, pb.InstallRequest(run="a"), blob) for blob in (whole, short)]
    assert answers[0].blob == answers[1].blob
    (folder / "base.safetensors").unlink()
    assert not pb.ProfileReply.FromString(ask(folder, PROFILE, pb.ProfileRequest()).body).bases
    assert "goes on without its base model" in caplog.text
    with pytest.raises(MissingPartError, match="its weights"):
        ask(folder, INSTALL, pb.InstallRequest(run="a"), short)
    assert DeviceStore(folder / "store").package("a") == short


def test_it_keeps_what_was_trained_when_the_run_is_over(folder, package):
    ask(folder, INSTALL, pb.InstallRequest(run="a"), package)
    state, blob = start(package)
    wanted = {"run": "a", "adapter": state_digest(state)}
    ask(folder, EVALUATE, pb.EvaluateRequest(**wanted), blob)  # a network that is only compared
    assert DeviceStore(folder / "store").adapters() == {}
    ask(folder, EVALUATE, pb.EvaluateRequest(**wanted, keep=True), blob)
    (kept,) = DeviceStore(folder / "store").adapters().values()
    assert state_digest(decode_state(kept)) == state_digest(state)


def smaller(package, share=0.5):
    """The package of a mask within a package's own."""
    network = build_subnetwork(package, plan_of=lambda _: None)
    rng, groups = np.random.default_rng(3), {}
    for name, kept in network.mask.groups.items():
        there = np.flatnonzero(kept)
        groups[name] = np.zeros(len(kept), np.bool_)
        groups[name][rng.permutation(there)[: max(1, int(share * len(there)))]] = True
    module = build(MODEL, num_classes=2)
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    return pack_subnetwork(
        network.plan, Mask(groups), state, num_classes=3, adapter=AdapterConfig(rank=2)
    )


def asked_for_attention(state, **changes):
    settings = {"run": "r", "adapter": state_digest(state), "power": 1.0, "form": "mean"}
    return pb.AttentionRequest(**(settings | {"pictures": 100, "seed": 4} | changes))


def test_it_sums_the_attention_of_its_own_pictures(folder, package):
    ask(folder, INSTALL, pb.InstallRequest(run="r"), package)
    state, blob = start(package)
    answer = ask(folder, ATTENTION, asked_for_attention(state), blob)
    reply = pb.AttentionReply.FromString(answer.body)
    assert (reply.pictures, reply.evaluation.pictures) == (24, 6)
    network = build_subnetwork(package, plan_of=lambda _: None)
    load_adapter_state(network.module, state)
    pictures = read("npz", folder / "pictures.npz")
    images = to_tensor(pictures.images, network.card)
    plan = shrink_plan(network.plan, network.mask)
    expected = attention_sums(network.module, plan, images)
    sums, _ = unpack(answer.blob)
    assert {name: len(values) for name, values in sums.items()} == {
        group.name: group.units for group in plan.groups
    }
    for name, values in sums.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6)
    # Of fewer pictures the same ones are taken every time, whoever asks.
    few = [
        ask(folder, ATTENTION, asked_for_attention(state, pictures=5, form="max"), blob)
        for _ in range(2)
    ]
    assert few[0].blob == few[1].blob
    assert pb.AttentionReply.FromString(few[0].body).pictures == 5
    other = ask(folder, ATTENTION, asked_for_attention(state, pictures=5, form="max", seed=5), blob)
    assert other.blob != few[0].blob


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"power": 0.0}, ScoreError),
        ({"power": float("nan")}, ScoreError),
        ({"pictures": 0}, ScoreError),
        ({"form": "median"}, UnknownNameError),
        ({"adapter": "0" * 64}, StaleUpdateError),
        ({"run": "other"}, MissingNetworkError),
        ({"network": "0" * 64}, MissingNetworkError),
    ],
)
def test_attention_that_cannot_be_measured_is_refused(folder, package, changes, error):
    ask(folder, INSTALL, pb.InstallRequest(run="r"), package)
    state, blob = start(package)
    with pytest.raises(error):
        ask(folder, ATTENTION, asked_for_attention(state, **changes), blob)


def asked_to_cut(package, state, **changes):
    message = pb.SubNetwork.FromString(package)
    content = state_digest(decode_state(message.weights))
    settings = {"run": "r", "adapter": state_digest(state), "mask": message.mask}
    return pb.CutRequest(**(settings | {"content": content} | changes))


def test_it_cuts_its_own_network_and_measures_what_is_left(folder, package):
    ask(folder, INSTALL, pb.InstallRequest(run="r"), package)
    left = smaller(package)
    state, blob = start(left)
    answers = [ask(folder, CUT, asked_to_cut(left, state), blob) for _ in range(2)]
    assert answers[0].blob == answers[1].blob  # the second one finds the smaller network
    store = DeviceStore(folder / "store")
    plan_of = store.plan
    kept = build_subnetwork(store.package("r"), plan_of=plan_of)
    fresh = build_subnetwork(left, plan_of=plan_of)
    assert state_digest(kept.module.state_dict()) == state_digest(fresh.module.state_dict())
    load_adapter_state(fresh.module, state)
    recalibrate(fresh.module, to_tensor(read("npz", folder / "pictures.npz").images, fresh.card))
    measured = {
        f"statistics/{name}": value
        for name, value in adapter_state(fresh.module).items()
        if name.endswith(STATISTICS)
    }
    arrays, _ = unpack(answers[0].blob)
    assert arrays.keys() == measured.keys()
    for name, value in arrays.items():
        np.testing.assert_allclose(value, measured[name], rtol=1e-5, atol=1e-6)
    # From now on a message that means the larger network is refused by the name that mends it.
    before = digest(pb.SubNetwork.FromString(package).mask)
    now = digest(pb.SubNetwork.FromString(left).mask)
    wanted = pb.EvaluateRequest(run="r", adapter=state_digest(state), network=before)
    with pytest.raises(MissingNetworkError, match="is another one: the server must send it"):
        ask(folder, EVALUATE, wanted, blob)
    wanted.network = now
    assert pb.EvaluateReply.FromString(ask(folder, EVALUATE, wanted, blob).body).HasField(
        "evaluation"
    )


def test_with_statistics_of_its_own_it_sends_none_of_the_smaller_network(folder, package):
    local = packed(package, local_statistics=True)
    ask(folder, INSTALL, pb.InstallRequest(run="r"), local)
    left = packed(smaller(package), local_statistics=True)
    whole, _ = start(left)
    state = {name: value for name, value in whole.items() if not name.endswith(STATISTICS)}
    answer = ask(folder, CUT, asked_to_cut(left, state), encode_state(state, "float32"))
    assert unpack(answer.blob)[0] == {}


def test_a_cut_that_is_refused_leaves_the_network_that_is_there(folder, package):
    ask(folder, INSTALL, pb.InstallRequest(run="r"), package)
    left = smaller(package)
    state, blob = start(left)
    wide, wide_blob = start(package)
    for changes, adapter, error in (
        ({"content": "0" * 64}, blob, DigestMismatchError),
        ({"adapter": "0" * 64}, blob, StaleUpdateError),
        ({"mask": b"FSM1"}, blob, FedsprigError),
        ({"run": "other"}, blob, MissingNetworkError),
        ({"adapter": state_digest(wide)}, wide_blob, AdapterError),
    ):
        with pytest.raises(error):
            ask(folder, CUT, asked_to_cut(left, state, **changes), adapter)
        assert DeviceStore(folder / "store").package("r") == package
    ask(folder, INSTALL, pb.InstallRequest(run="r"), left)
    with pytest.raises(MissingPartError, match="has lost units"):
        ask(folder, CUT, asked_to_cut(package, wide), wide_blob)
