"""One cut as the scheduler drives it: what is asked, what is done with the answers."""

from pathlib import Path

import numpy as np
import pytest

from fedsprig.adapters import is_statistic
from fedsprig.artifacts import pack
from fedsprig.graph import kept_index
from fedsprig.masks import Budget, Mask
from fedsprig.subnetwork import AdapterConfig
from fedsprig.wire import ATTENTION, CUT, Envelope
from fedsprig.wire import device_pb2 as pb
from fedsprig_server.attendance import Attendance
from fedsprig_server.base import Base
from fedsprig_server.cohort import Cut
from fedsprig_server.cohort_state import CohortState
from fedsprig_server.config import PruningConfig, RoundsConfig, SelectionConfig, ServerConfig
from fedsprig_server.ledger import Ledger
from fedsprig_server.library import Library, Run
from fedsprig_server.lobby import Member
from fedsprig_server.networks import Networks
from fedsprig_server.pruning import Shrinking, Sizes
from fedsprig_server.scheduler import Answer

CLASSES = ("x", "y", "z")
ADAPTER = AdapterConfig(rank=2)


@pytest.fixture(scope="module")
def base():
    return Base.load("cifar_resnet20", None)


def cohort(base, library, limits, masks, pictures):
    """Everything of a cohort in the middle of its training; device a's B is 1, device c's is 3."""
    pruning = PruningConfig(every=1, cuts=1, start=2.0)
    config = ServerConfig(
        library=Path("library"),
        model="cifar_resnet20",
        weights=None,
        image_size=None,
        tasks={"t": 2},
        adapter=ADAPTER,
        pruning=pruning,
    )
    members = [
        Member(name, node, CLASSES, pictures[name], limits[name], Budget(), frozenset())
        for node, name in enumerate(sorted(masks))
    ]
    here = Attendance("t", members, RoundsConfig(), expected=len(members))
    cuts = {name: Cut(mask, ADAPTER.index(base.plan, mask)) for name, mask in masks.items()}
    networks = Networks("t.one_shot", cuts, base, config, adapter=ADAPTER, num_classes=3)
    own = {cut.stratum: heads(base, cut) for cut in cuts.values()}
    start = CohortState.start(base, ADAPTER, own, num_classes=3)
    values = {cuts["a"].stratum: 1.0, cuts["c"].stratum: 3.0}
    body = {
        stratum: {
            name: np.full_like(value, values[stratum]) if name.endswith("adapter_b") else value
            for name, value in parts.items()
        }
        for stratum, parts in start.body.items()
    }
    sizes = Sizes(base, pruning, SelectionConfig(), num_classes=3)
    shrinking = Shrinking(
        here=here,
        pictures={n: float(p) for n, p in pictures.items()},
        base=base,
        library=library,
        config=config,
        pruning=pruning,
        sizes=sizes,
        adapter=ADAPTER,
        num_classes=3,
    )
    state = {"masks": {name: library.blobs.put(m.to_bytes()) for name, m in masks.items()}}
    run = Run("t.one_shot", "training", 1, {"limits": limits}, state)
    return shrinking, run, CohortState(body, own), networks


def heads(base, cut):
    features = len(cut.index.get("linear.weight", {}).get(1, range(64)))
    return {
        "linear.weight": np.ones((3, features), np.float32),
        "linear.bias": np.ones(3, np.float32),
    }


def statistics(base, mask):
    index = kept_index(base.plan, mask)
    return {
        f"statistics/{name}": np.ones(len(index.get(name, {}).get(0, range(*shape))), np.float32)
        for name, shape in base.plan.shapes.items()
        if is_statistic(name)
    }


def answer(base, request, masks, sums):
    """What an honest device says."""
    if request.envelope.kind == ATTENTION:
        evaluation = pb.Evaluation(accuracy=0.5)
        body = pb.AttentionReply(pictures=2, evaluation=evaluation)
        kept = masks[sorted(masks)[request.node]]
        arrays = {name: sums[name][units] for name, units in kept.groups.items()}
    else:
        wanted = pb.CutRequest.FromString(request.envelope.body)
        body = pb.CutReply(pictures=2)
        arrays = statistics(base, Mask.from_bytes(wanted.mask, base.plan))
    return Answer(
        request.node, Envelope(request.envelope.kind, body.SerializeToString(), pack(arrays))
    )


def driven(base, flow, masks, sums):
    """Run a flow with honest devices; the kinds of what it asked, and what it returned."""
    kinds, ask = [], next(flow)
    while True:
        kinds.append({request.envelope.kind for request in ask.requests})
        answers = [answer(base, request, masks, sums) for request in ask.requests]
        for item in answers:
            ask.good(item)
        try:
            ask = flow.send(answers)
        except StopIteration as end:
            return kinds, end.value


def least(base, sizes):
    groups = {g.name: np.arange(g.units) < sizes.least[g.name] for g in base.plan.groups}
    return Mask(groups)


@pytest.mark.parametrize(("pictures", "value"), [({"a": 5, "c": 9}, 3.0), ({"a": 9, "c": 5}, 1.0)])
def test_two_widths_that_become_one_go_on_from_the_one_with_more_pictures(
    base, tmp_path, pictures, value
):
    rng = np.random.default_rng(0)
    wide = Mask.random(base.plan, 0.8, rng)
    narrow = wide & Mask.random(base.plan, 0.7, rng)
    narrow = narrow | Mask({n: u & (np.cumsum(u) == 1) for n, u in wide.groups.items()})
    masks = {"a": wide, "c": narrow}
    sizes = Sizes(base, PruningConfig(), SelectionConfig(), num_classes=3)
    smallest = sizes.of(least(base, sizes))
    limits = {"a": {"macs": smallest.macs}, "c": {"weight_bytes": 4 * smallest.parameters}}
    sums = {group.name: rng.gamma(2.0, size=group.units) for group in base.plan.groups}
    with Library(tmp_path / "library") as library:
        shrinking, run, state, networks = cohort(base, library, limits, masks, pictures)
        ledger = Ledger()
        flow = shrinking.cut(1, run, state, networks, ledger)
        kinds, (after, smaller, changes) = driven(base, flow, masks, sums)
        made = {
            name: Mask.from_bytes(library.blobs.get(key), base.plan)
            for name, key in changes["masks"].items()
        }
    assert kinds == [{ATTENTION}, {CUT}]
    assert made["a"] == made["c"] == smaller.cuts["a"].mask
    assert made["a"].is_subset_of(narrow)
    (body,) = after.body.values()
    kept = kept_index(base.plan, made["a"])
    index = kept["layer1.0.conv1.weight"][0]
    trained = body["layer1.0.conv1.adapter_b"]
    assert (trained[index] == value).all()
    assert not np.delete(trained, index, axis=0).any()
    (own,) = after.own.values()
    assert own["linear.weight"].shape == (3, len(kept["linear.weight"][1]))
    assert (own["bn1.running_var"] == 1).all()
    (line,) = changes["cuts"]
    assert line["accuracy"] == {"a": 0.5, "c": 0.5}
    assert [width["devices"] for width in line["widths"]] == [["a"], ["c"]]
    assert {width["units"] for width in line["widths"]} == {int(made["a"].flat.sum())}
    assert ledger.bytes.keys() == {"a", "c"}
