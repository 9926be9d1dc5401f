"""Networks that are healed before they are sent: once for each mask, and then as any other."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsprig.adapters import load_adapter_state
from fedsprig.artifacts import unpack
from fedsprig.errors import DataError
from fedsprig.graph import materialize
from fedsprig.masks import Mask
from fedsprig.preparing import HealConfig, heal
from fedsprig.seeds import derive_seed
from fedsprig.subnetwork import AdapterConfig, build_subnetwork
from fedsprig.training import features, read, to_tensor
from fedsprig_server.base import Base
from fedsprig_server.cohort import Cut
from fedsprig_server.config import ServerConfig, StartConfig
from fedsprig_server.healing import Healer, healed_weights
from fedsprig_server.library import Library
from fedsprig_server.networks import Networks
from fedsprig_server.replies import Installed


@pytest.fixture(scope="module")
def base():
    return Base.load("cifar_resnet20", None, image_size=8)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    digits = read("embedded", name="digits")
    folder = tmp_path_factory.mktemp("own")
    files = []
    for name, part in (("a", slice(0, 12)), ("b", slice(12, 30))):
        files.append(str(folder / f"{name}.npz"))
        np.savez(files[-1], images=digits.images[part], labels=digits.labels[part])
    return StartConfig(heal_steps=2, pictures=tuple(files), batch_size=8)


@pytest.fixture
def library(tmp_path):
    with Library(tmp_path / "library") as opened:
        yield opened


@pytest.fixture(scope="module")
def masks(base):
    rng = np.random.default_rng(0)
    return [Mask.random(base.plan, 0.5, rng), Mask.random(base.plan, 0.3, rng)]


def finished(flow):
    """Drive a flow that asks nobody anything."""
    while True:
        try:
            ask = next(flow)
        except StopIteration as end:
            return end.value
        assert not ask.requests


def healed(base, library, start, masks, seed=4):
    names = [library.blobs.put(mask.to_bytes()) for mask in masks]
    with Healer(base, library, start, seed=seed) as healer:
        found = finished(healer.heal(names))
        assert finished(healer.heal(names[:1])) == {k: found[k] for k in names[:1] if k in found}
    return found


def test_each_mask_is_healed_once_on_all_pictures(base, library, start, masks):
    whole = Mask.full(base.plan)
    found = healed(base, library, start, [*masks, whole, masks[0]])
    assert sorted(found) == sorted(mask.digest for mask in masks)
    small = materialize(base.module, base.plan, masks[0])
    pictures = torch.cat(
        [to_tensor(read("npz", path).images, base.card) for path in start.pictures]
    )
    seed = derive_seed(4, "heal", masks[0].digest)
    heal(
        small,
        masks[0],
        base.module,
        base.plan,
        pictures,
        HealConfig(steps=2, batch_size=8),
        seed=seed,
    )
    kept, _ = unpack(library.blobs.get(found[masks[0].digest]))
    state = small.state_dict()
    assert not any(name.startswith("linear") for name in kept)
    for name, value in kept.items():
        np.testing.assert_allclose(value, state[name], rtol=1e-5, atol=1e-6)


def test_another_server_heals_to_the_same_bytes_and_another_seed_does_not(
    base, library, start, masks
):
    found = [healed(base, library, start, masks, seed=seed) for seed in (4, 4, 5)]
    assert found[0] == found[1]
    assert found[0].keys() == found[2].keys()
    assert not set(found[0].values()) & set(found[2].values())


def test_pictures_that_are_gone_are_named(base, library, start, masks):
    gone = dataclasses.replace(start, pictures=("gone.npz",))
    with pytest.raises(DataError, match=r"no file 'gone\.npz'"):
        healed(base, library, gone, masks)


@pytest.mark.parametrize("kind", ["splora", "full"])
def test_what_is_sent_is_what_was_healed_also_to_who_keeps_the_base(
    kind, base, library, start, masks
):
    found = healed(base, library, start, masks[:1])
    weights = healed_weights(library, found, [mask.digest for mask in masks])
    adapter = AdapterConfig(kind=kind, rank=2)
    config = ServerConfig(
        library=Path("library"),
        model="cifar_resnet20",
        weights=None,
        image_size=8,
        tasks={"t": 2},
        adapter=adapter,
        weights_codec="float32",
    )
    cuts = {
        name: Cut(mask, adapter.index(base.plan, mask))
        for name, mask in zip("ab", masks, strict=True)
    }
    networks = Networks(
        "t.one_shot", cuts, base, config, adapter=adapter, num_classes=3, healed=weights
    )
    sent = {name: networks.message(name, with_plan=True).blob for name in cuts}
    short = {name: networks.message(name, with_plan=True, with_weights=False).blob for name in cuts}
    assert short["a"] == sent["a"]  # healed: nobody can cut it
    assert len(short["b"]) < len(sent["b"])
    built = build_subnetwork(sent["a"], plan_of=lambda _: None).module
    small = materialize(base.module, base.plan, masks[0])
    small.load_state_dict(
        {name: torch.from_numpy(value) for name, value in weights[masks[0].digest].items()},
        strict=False,
    )
    pictures = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = features(small, "linear", pictures)
    torch.testing.assert_close(features(built, "linear", pictures), expected)
    # The first state of the cohort says the same of all that it trains.
    statistics = {
        name: value for name, value in weights[masks[0].digest].items() if "running" in name
    }
    width = expected.shape[1]
    reply = Installed(np.ones((3, width), np.float32), np.ones(3), 1.0, statistics, 0.0)
    state = networks.start({"a": reply}, {"a": 3.0})
    load_adapter_state(built, state.for_device(cuts["a"].index, masks[0].digest))
    torch.testing.assert_close(features(built, "linear", pictures), expected)
    assert not torch.allclose(
        features(materialize(base.module, base.plan, masks[0]), "linear", pictures), expected
    )
