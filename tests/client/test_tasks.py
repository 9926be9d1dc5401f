"""What a device has learnt in several runs is there again, by the runs' names."""

import shutil

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.torch import save_file

from fedsprig.adapters import adapter_state, load_adapter_state
from fedsprig.artifacts import digest
from fedsprig.bases import BaseWeights, leave_out_base
from fedsprig.errors import DataError, MissingNetworkError, WeightsError
from fedsprig.graph import trace_groups
from fedsprig.masks import Mask
from fedsprig.models import build
from fedsprig.subnetwork import AdapterConfig, build_subnetwork, pack_subnetwork
from fedsprig.updates import encode_state
from fedsprig_client.store import DeviceStore
from fedsprig_client.tasks import open_tasks

MODEL = "cifar_resnet20"


@pytest.fixture(scope="module")
def base():
    module = build(MODEL, num_classes=2)
    plan = trace_groups(module, torch.zeros(1, 3, 32, 32), name=MODEL)
    return module, plan, BaseWeights.of(MODEL, module, plan.head)


@pytest.fixture
def folder(base, tmp_path):
    save_file(base[0].state_dict(), tmp_path / "base.safetensors")
    write(tmp_path, {"model": MODEL, "weights": "base.safetensors"})
    return tmp_path


def write(folder, base):
    settings = {"name": "gate-3", "task": "parcels", "data": {"kind": "npz", "path": "none"}}
    (folder / "device.toml").write_text(tomli_w.dumps(settings | ({"base": base} if base else {})))


def learn(folder, base, run, seed, *, short=True, plan=None):
    """What installing and evaluating leave in a device's store; returns the network."""
    _, own_plan, own = base
    plan = plan or own_plan
    mask = Mask.random(plan, 0.4, np.random.default_rng(seed))
    whole = pack_subnetwork(plan, mask, own.state, num_classes=3, adapter=AdapterConfig(rank=2))
    network = build_subnetwork(whole, plan_of=lambda _: None).module
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.rand(value.shape, generator=generator)
        for name, value in adapter_state(network).items()
    }
    load_adapter_state(network, state)
    store = DeviceStore(folder / "store")
    store.keep_plan(plan.to_bytes())
    package = leave_out_base(whole, plan, own.state, own.digest, with_plan=False)
    store.keep_package(run, package if short else whole)
    store.keep_adapter(run, encode_state(state, "float32"))
    return network


def same(one, other):
    found, expected = one.state_dict(), other.state_dict()
    return found.keys() == expected.keys() and all(
        torch.equal(value, expected[name]) for name, value in found.items()
    )


def test_tasks_come_back_as_they_were_trained_without_the_disk(base, folder):
    expected = {
        "parcels.one_shot": learn(folder, base, "parcels.one_shot", 1),
        "letters.one_shot": learn(folder, base, "letters.one_shot", 2, short=False),
    }
    DeviceStore(folder / "store").keep_package("unfinished", b"package")
    tasks = open_tasks(folder / "device.toml", cache_bytes=0)
    shutil.rmtree(folder)
    assert tasks.names == ("letters.one_shot", "parcels.one_shot")
    assert (tasks.card.name, tasks.card.input_size) == (MODEL, 32)
    for name in ("parcels.one_shot", "letters.one_shot", "parcels.one_shot"):
        assert same(tasks.switch(name), expected[name])


def test_what_does_not_fit_is_left_out_and_stays_on_disk(base, folder, caplog):
    expected = {name: learn(folder, base, name, seed) for seed, name in enumerate("ab")}
    module, _, own = base
    wide = trace_groups(module, torch.zeros(1, 3, 64, 64), name=MODEL)
    learn(folder, base, "other plan", 5, plan=wide)
    other = BaseWeights(MODEL, {n: v + 1 for n, v in own.state.items()}, "1" * 64)
    learn(folder, (module, base[1], other), "other base", 6)
    learn(folder, base, "damaged", 7)
    (store,) = folder.glob("store")
    broken = store / "runs" / digest(b"damaged")
    broken.write_bytes(broken.read_bytes()[:-1])
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    tasks = open_tasks(folder / "device.toml")
    assert tasks.names == ("a", "b")
    assert all(same(tasks.switch(name), network) for name, network in expected.items())
    for name in ("other plan", "other base", "damaged"):
        assert f"run '{name}' is left out" in caplog.text
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def test_why_there_is_nothing_to_switch_to_is_said(base, folder):
    with pytest.raises(MissingNetworkError, match="no run has ended yet"):
        open_tasks(folder / "device.toml")
    learn(folder, base, "a", 1)
    (folder / "base.safetensors").unlink()
    with pytest.raises(WeightsError, match="there is no file"):
        open_tasks(folder / "device.toml")
    write(folder, None)
    with pytest.raises(DataError, match=r"add the table \[base\]"):
        open_tasks(folder / "device.toml")
