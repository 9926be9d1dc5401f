"""A task is the same network however it is come by, and no task leaks into another."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.adapters import adapter_state, load_adapter_state
from fedsprig.adapters.splopa import SPLoPALayer
from fedsprig.bases import BaseWeights, leave_out_base
from fedsprig.errors import (
    AdapterError,
    FedsprigError,
    MissingPartError,
    PlanError,
    UnknownNameError,
    WeightsError,
)
from fedsprig.graph import trace_groups
from fedsprig.graph.verify import randomised
from fedsprig.masks import Mask
from fedsprig.models import build
from fedsprig.subnetwork import AdapterConfig, build_subnetwork, pack_subnetwork
from fedsprig.switching import Task, TaskSwitch
from fedsprig.updates import CODECS

SIZES = {"cifar_resnet20": 32, "sprig20": 32, "torchvision/resnet18": 32, "sprig_vit": 32}
KINDS = [
    AdapterConfig(rank=4),
    AdapterConfig(rank=4, seed=5, train_a=True),
    AdapterConfig(kind="sppara"),
    AdapterConfig(kind="full"),
]
SPLOPA = AdapterConfig(kind="splopa", unadapted="freeze")


def base_of(name):
    """A base with random statistics too, and its plan."""
    size = SIZES[name]
    module = randomised(build(name, num_classes=2, image_size=size), seed=3)
    plan = trace_groups(module, torch.zeros(1, 3, size, size), name=name)
    return plan, BaseWeights.of(name, module, plan.head)


@pytest.fixture(scope="module")
def bases():
    return {name: base_of(name) for name in SIZES}


@pytest.fixture(scope="module")
def base(bases):
    return bases["cifar_resnet20"]


def package_of(base, task):
    plan, own = base
    return pack_subnetwork(
        plan,
        task.mask,
        own.state,
        num_classes=task.num_classes,
        adapter=task.adapter,
        codec=task.codec,
    )


def ordinary(base, task):
    """The network as any device builds it: from a package, and then the adapter."""
    module = build_subnetwork(package_of(base, task), plan_of=lambda _: None).module
    load_adapter_state(module, task.state)
    return module


def task_of(base, seed, *, keep=0.5, num_classes=3, adapter=KINDS[0], codec="float16", mask=None):
    """A task whose state is random."""
    plan, _ = base
    task = Task(
        mask=mask or Mask.random(plan, keep, np.random.default_rng(seed)),
        adapter=adapter,
        num_classes=num_classes,
        state={},
        codec=codec,
    )
    built = build_subnetwork(package_of(base, task), plan_of=lambda _: None).module
    generator = torch.Generator().manual_seed(seed)
    return replace(
        task,
        state={
            name: torch.rand(value.shape, generator=generator) + 0.1
            for name, value in adapter_state(built).items()
        },
    )


def switch_of(base, *tasks, **options):
    plan, own = base
    switch = TaskSwitch(plan, own.state, **options)
    for name, task in zip("abcdef", tasks, strict=False):
        switch.add(name, task)
    return switch


def bits(module):
    """Everything that a network is: values, what trains, mode, and the types of its modules."""
    return (
        {name: value.numpy().tobytes() for name, value in module.state_dict().items()},
        [(name, p.requires_grad) for name, p in module.named_parameters()],
        [
            (path, type(part), part.training, part.extra_repr())
            for path, part in module.named_modules()
        ],
    )


def at(module, name):
    path, _, own = name.rpartition(".")
    return getattr(module.get_submodule(path), own)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("codec", CODECS)
def test_switching_gives_what_building_gives_to_the_bit(bases, name, codec):
    base = bases[name]
    tasks = [
        task_of(base, seed, keep=keep, adapter=adapter, num_classes=2 + seed, codec=codec)
        for seed, (keep, adapter) in enumerate(
            [(0.3, KINDS[0]), (1.0, KINDS[1]), (0.7, KINDS[2]), (0.4, KINDS[3]), (0.6, SPLOPA)]
        )
    ]
    size = SIZES[name]
    pictures = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    cached, bare = switch_of(base, *tasks), switch_of(base, *tasks, cache_bytes=0)
    for letter, task in zip("abcde", tasks, strict=True):
        expected = ordinary(base, task)
        for switch in (cached, bare, cached):
            found = switch.switch(letter)
            assert bits(found) == bits(expected)
            with torch.inference_mode():
                assert torch.equal(found(pictures), expected(pictures))
    assert bare.held.cuts == 0 < cached.held.cuts


@pytest.mark.parametrize("kind", ["splora", "sppara", "splopa", "full"])
def test_every_kind_of_adapter_is_switched_and_trained_alone(bases, kind):
    base = bases["sprig_vit"]
    unadapted = "freeze" if kind == "splopa" else "refuse"
    adapter = AdapterConfig(kind=kind, rank=2, train_a=True, unadapted=unadapted)
    tasks = [task_of(base, seed, adapter=adapter, codec="float32") for seed in range(2)]
    switch = switch_of(base, *tasks)
    expected = [bits(ordinary(base, task)) for task in tasks]
    network = switch.switch("a").train()
    steps = torch.optim.SGD(network.parameters(), 0.1, weight_decay=0.1)
    network(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))).sum().backward()
    steps.step()
    assert [bits(switch.switch(name)) for name in "ab"] == expected
    switch.update("a", adapter_state(network))
    assert bits(switch.switch("a"))[0] == bits(network)[0]


@pytest.fixture(scope="module")
def known(base):
    """Tasks, two of which have one mask, and what their networks are."""
    first = task_of(base, 1)
    tasks = [
        first,
        task_of(base, 2, mask=first.mask, num_classes=5),
        task_of(base, 3, keep=0.2),
        task_of(base, 4, codec="float32", keep=0.9),
    ]
    return tasks, [bits(ordinary(base, task)) for task in tasks]


@settings(max_examples=15)
@given(
    order=st.lists(st.integers(0, 3), min_size=1, max_size=8),
    cache_bytes=st.sampled_from([0, 100_000, 400_000, 10**9]),
)
def test_any_order_with_any_room_gives_the_same_networks(base, known, order, cache_bytes):
    tasks, expected = known
    switch = switch_of(base, *tasks, cache_bytes=cache_bytes)
    for number in order:
        assert bits(switch.switch("abcd"[number])) == expected[number]
        assert switch.held.cuts <= cache_bytes


def test_what_the_mask_leaves_whole_is_the_bases_own_memory(base):
    plan, own = base
    mask = Mask.full(plan)
    switch = switch_of(base, task_of(base, 1, mask=mask, codec="float32"))
    network = switch.switch("a")
    for name, parameter in network.named_parameters():
        if name in own.state:
            shared = parameter.data_ptr() == own.state[name].ctypes.data
            assert shared is not parameter.requires_grad, name
    for name, buffer in network.named_buffers():
        if name in own.state:
            assert buffer.data_ptr() != own.state[name].ctypes.data
    assert switch.held.cuts == 0


def test_tasks_of_one_mask_share_what_was_cut_for_it_and_nothing_that_trains(base, known):
    switch = switch_of(base, *known[0])
    one, two, other, again = (switch.switch(name) for name in "abca")
    for name, parameter in one.named_parameters():
        if name.startswith("linear."):
            continue
        same = parameter.data_ptr() == at(two, name).data_ptr()
        assert same is (name in base[1].state and not parameter.requires_grad), name
        assert same is (parameter.data_ptr() == at(again, name).data_ptr())
        assert parameter is not at(two, name)
        assert parameter.data_ptr() != at(other, name).data_ptr()


@pytest.mark.parametrize("adapter", KINDS, ids=lambda a: f"{a.kind}-{a.train_a}")
@pytest.mark.parametrize(
    "optimiser",
    [
        lambda p: torch.optim.SGD(p, 0.5, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.5),
    ],
    ids=["sgd", "adamw"],
)
def test_training_one_task_changes_neither_the_base_nor_a_task(base, adapter, optimiser):
    before = {name: value.tobytes() for name, value in base[1].state.items()}
    # One mask, so that they share as much as tasks can; the second one keeps everything.
    first = task_of(base, 1, adapter=adapter)
    tasks = [
        first,
        task_of(base, 2, adapter=adapter, mask=first.mask),
        task_of(base, 3, mask=Mask.full(base[0]), codec="float32", adapter=adapter),
    ]
    switch = switch_of(base, *tasks)
    expected = [bits(ordinary(base, task)) for task in tasks]
    for letter in "ac":
        network, twin = switch.switch(letter).train(), switch.switch(letter)
        steps = optimiser(network.parameters())
        for seed in range(3):
            pictures = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
            steps.zero_grad()
            network(pictures).square().mean().backward()
            steps.step()
        trained = {name for name, p in network.named_parameters() if p.requires_grad}
        assert {n for n in trained if not torch.equal(at(network, n), at(twin, n))} == trained
        assert not torch.equal(network.bn1.running_mean, twin.bn1.running_mean)
        assert bits(twin) == expected["abc".index(letter)]
    assert {name: value.tobytes() for name, value in base[1].state.items()} == before
    assert [bits(switch.switch(name)) for name in "abc"] == expected


def test_what_a_task_has_learnt_is_kept_by_saying_so(base, known):
    (task, other, *_), _ = known
    switch = switch_of(base, task, other)
    early = switch.switch("a")
    network = switch.switch("a").train()
    network(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        network.linear.bias.add_(1)
    learnt = adapter_state(network)
    switch.update("a", learnt)
    assert bits(switch.switch("a")) == bits(ordinary(base, replace(task, state=learnt)))
    assert bits(switch.switch("a"))[0] == bits(network)[0] | {
        name: value.numpy().tobytes()
        for name, value in early.state_dict().items()
        if name.endswith("num_batches_tracked")
    }
    assert bits(early) == bits(ordinary(base, task))
    assert bits(switch.switch("b")) == bits(ordinary(base, other))
    state = switch.state("a")
    assert all(torch.equal(state[name], value) for name, value in learnt.items())
    state["linear.bias"].zero_()
    learnt["linear.bias"].zero_()
    assert not torch.equal(switch.state("a")["linear.bias"], state["linear.bias"])


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


REFUSED = {
    "another mask": (lambda t: replace(t, mask=Mask({"a": np.ones(3, bool)})), PlanError),
    "no unit left": (
        lambda t: replace(t, mask=Mask({n: np.zeros_like(u) for n, u in t.mask.groups.items()})),
        FedsprigError,
    ),
    "another rank": (lambda t: replace(t, adapter=AdapterConfig(rank=5)), AdapterError),
    "another kind": (lambda t: replace(t, adapter=AdapterConfig(kind="full")), AdapterError),
    "unknown kind": (lambda t: replace(t, adapter=AdapterConfig(kind="lore")), UnknownNameError),
    "unknown codec": (lambda t: replace(t, codec="float13"), UnknownNameError),
    "more classes": (lambda t: replace(t, num_classes=4), AdapterError),
    "no class": (lambda t: replace(t, num_classes=0), FedsprigError),
    "a part missing": (
        lambda t: replace(t, state=without(t.state, "linear.bias")),
        AdapterError,
    ),
    "not finite": (
        lambda t: replace(t, state=t.state | {"linear.bias": torch.full((3,), torch.nan)}),
        AdapterError,
    ),
}


@pytest.mark.parametrize("change", REFUSED)
def test_a_task_that_does_not_fit_is_refused_and_nothing_is_lost(base, known, change):
    tasks, expected = known
    switch = switch_of(base, *tasks[:2])
    held = switch.held
    spoil, error = REFUSED[change]
    with pytest.raises(error) as caught:
        switch.add("new", spoil(tasks[0]))
    assert "\n" not in str(caught.value)
    assert switch.names == ("a", "b")
    assert switch.held.tasks == held.tasks
    assert [bits(switch.switch(name)) for name in "ab"] == expected[:2]


def test_a_name_is_given_once_and_a_state_that_does_not_fit_changes_nothing(base, known):
    tasks, expected = known
    switch = switch_of(base, tasks[0])
    with pytest.raises(AdapterError, match="here already"):
        switch.add("a", tasks[2])
    with pytest.raises(AdapterError, match="here already"):
        switch.add_package("a", package_of(base, tasks[2]), tasks[2].state)
    wrong = {name: torch.zeros_like(value) for name, value in tasks[0].state.items()}
    with pytest.raises(AdapterError):
        switch.update("a", wrong | {"linear.bias": torch.zeros(4)})
    assert bits(switch.switch("a")) == expected[0]
    for refused in (switch.switch, switch.state, switch.remove):
        with pytest.raises(UnknownNameError, match="unknown task"):
            refused("A")
    with pytest.raises(UnknownNameError):
        switch.update("A", wrong)


def test_bytes_in_memory_are_counted_and_bounded(base, known):
    tasks, _ = known
    plan, own = base
    switch = TaskSwitch(plan, own.state)
    whole = sum(value.nbytes for value in own.state.values())
    assert (switch.held.base, switch.held.tasks, switch.held.cuts) == (whole, 0, 0)
    switch.add("a", tasks[0])
    frozen = [
        p
        for n, p in switch.switch("a").named_parameters()
        if n in own.state and not p.requires_grad
    ]
    assert switch.held.cuts == sum(p.nbytes for p in frozen)
    state = sum(value.nbytes for value in tasks[0].state.values())
    assert state < switch.held.tasks < state + 100_000
    switch.add("b", tasks[1])
    assert switch.held.cuts == sum(p.nbytes for p in frozen)  # one mask
    switch.remove("a")
    assert switch.held.cuts == sum(p.nbytes for p in frozen)
    switch.remove("b")
    assert (switch.held.base, switch.held.tasks, switch.held.cuts) == (whole, 0, 0)
    assert switch.names == ()


@pytest.mark.parametrize("train_a", [False, True])
def test_prototypes_are_shared_within_a_network_and_never_between_two(bases, train_a):
    adapter = replace(SPLOPA, train_a=train_a)
    task = task_of(bases["sprig_vit"], 1, adapter=adapter)
    switch = switch_of(bases["sprig_vit"], task, replace(task, num_classes=3))
    found = []
    for name in "aab":
        layers = [m for m in switch.switch(name).modules() if isinstance(m, SPLoPALayer)]
        assert len(layers) > 2
        assert len({id(layer.adapter_prototypes) for layer in layers}) == 1
        found.append(layers[0].adapter_prototypes)
    assert len({prototypes.p.data_ptr() for prototypes in found}) == 3
    size = sum(tensor.nbytes for tensor in found[0].state_dict().values())
    both = switch.held.tasks
    switch.remove("b")
    assert size < switch.held.tasks == both // 2


def test_weights_that_are_rounded_but_not_cut_are_bounded_counted_once_and_freed(base):
    plan, own = base
    whole = Mask.full(plan)
    last = plan.groups[-1].name
    most = Mask(whole.groups | {last: np.arange(len(whole.groups[last])) > 0})
    tasks = [task_of(base, 1, mask=whole), task_of(base, 2, mask=most)]
    bare = switch_of(base, *tasks, cache_bytes=0)
    size = sum(value.nbytes for value in own.state.values())
    for name, task in zip("ab", tasks, strict=True):
        assert bits(bare.switch(name)) == bits(ordinary(base, task))
        assert (bare.held.base, bare.held.cuts) == (size, 0)

    switch = switch_of(base, *tasks)
    frozen = [
        {
            (p.data_ptr(), p.nbytes)
            for n, p in switch.switch(name).named_parameters()
            if n in own.state and not p.requires_grad
        }
        for name in "ab"
    ]
    shared = frozen[0] & frozen[1]
    assert 0 < len(shared) < len(frozen[0])
    assert switch.held.base == size
    assert switch.held.cuts == sum(nbytes for _, nbytes in frozen[0] | frozen[1])
    switch.remove("a")
    assert switch.held.cuts == sum(nbytes for _, nbytes in frozen[1])
    switch.remove("b")
    assert switch.held.cuts == 0
    # What could not be taken leaves nothing behind.
    with pytest.raises(AdapterError):
        switch.add("c", replace(tasks[0], num_classes=4))
    assert switch.held.cuts == 0


def test_of_what_was_cut_the_oldest_goes_first(base):
    tasks = [
        task_of(base, seed, keep=keep, codec="float32") for seed, keep in enumerate((0.4, 0.5, 0.6))
    ]
    each = [switch_of(base, task).held.cuts for task in tasks]
    switch = switch_of(base, *tasks, cache_bytes=sum(each) - 1)

    def place(name):
        return at(switch.switch(name), "layer1.0.conv1.weight")

    assert switch.held.cuts == each[1] + each[2]  # a went to make room for c
    kept = {name: place(name) for name in "cb"}
    for name in "cb":
        assert place(name).data_ptr() == kept[name].data_ptr()
    kept["a"] = place("a")  # takes the room of c, which was used before b
    assert switch.held.cuts == each[0] + each[1]
    for name in "ab":
        assert place(name).data_ptr() == kept[name].data_ptr()
    anew = place("c")
    assert anew.data_ptr() != kept["c"].data_ptr()
    assert torch.equal(anew, kept["c"])


def test_writing_to_shared_weights_is_found_out(base):
    plan, own = base
    state = {name: value.copy() for name, value in own.state.items()}
    tasks = [
        task_of(base, 1, codec="float32"),
        task_of(base, 2, mask=Mask.full(plan), codec="float16"),
        task_of(base, 3, mask=Mask.full(plan), codec="float32"),
    ]
    switch = TaskSwitch(plan, state)
    for name, task in zip("abc", tasks, strict=True):
        switch.add(name, task)
    expected = [bits(ordinary(base, task)) for task in tasks]
    for name, number in (("a", 0), ("b", 1)):
        with torch.no_grad():  # what was cut or rounded can be made again
            at(switch.switch(name), "layer1.0.conv1.weight").zero_()
        assert [bits(switch.switch(n)) for n in "abc"] == expected, number
    network = copy.deepcopy(switch.switch("c"))
    with torch.no_grad():
        at(network, "layer1.0.conv1.weight").zero_()
    assert bits(switch.switch("c")) == expected[2]
    network = switch.switch("c")
    network.load_state_dict({n: torch.zeros_like(v) for n, v in network.state_dict().items()})
    with pytest.raises(WeightsError, match="load the base again"):
        switch.switch("c")
    with pytest.raises(WeightsError, match="load the base again"):
        switch.add("d", tasks[0])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("short", [False, True])
def test_packages_are_tasks(base, codec, short):
    plan, own = base
    task = task_of(base, 1, codec=codec)
    package = package_of(base, task)
    if short:
        package = leave_out_base(package, plan, own.state, own.digest, with_plan=False)
    switch = switch_of(base)
    switch.add_package("a", package, task.state)
    assert bits(switch.switch("a")) == bits(ordinary(base, task))
    assert switch.held == switch_of(base, task).held


def test_frozen_weights_of_a_package_that_are_not_the_bases_stay_its_own(base):
    """A network that was cut from other weights, or healed after the cut, is not mixed up."""
    plan, own = base
    task = task_of(base, 1)
    other = BaseWeights.of(own.model, build(own.model, num_classes=2), plan.head)
    foreign = (
        plan,
        replace(other, state=own.state | {"conv1.weight": other.state["conv1.weight"]}),
    )
    switch = switch_of(base, task)
    switch.add_package("b", package_of(foreign, task), task.state)
    assert bits(switch.switch("b")) == bits(ordinary(foreign, task))
    assert bits(switch.switch("a")) == bits(ordinary(base, task))
    own_weight = at(switch.switch("b"), "conv1.weight")
    assert own_weight.data_ptr() != at(switch.switch("b"), "conv1.weight").data_ptr()


def test_packages_that_do_not_fit_are_refused_by_name(base, bases):
    plan, own = base
    task = task_of(base, 1)
    switch = switch_of(base)
    package = package_of(base, task)
    stranger = leave_out_base(package, plan, own.state, "0" * 64, with_plan=True)
    probe = pack_subnetwork(plan, task.mask, own.state, num_classes=3, adapter=None)
    other = task_of(bases["sprig20"], 1)
    for refused, state, error in (
        (stranger, task.state, MissingPartError),
        (probe, task.state, AdapterError),
        (package, {}, AdapterError),
        (package_of(bases["sprig20"], other), other.state, PlanError),
        (package[:-5], task.state, FedsprigError),
    ):
        with pytest.raises(error) as caught:
            switch.add_package("a", refused, state)
        assert "\n" not in str(caught.value)
    assert switch.names == ()


def test_a_base_that_does_not_fit_the_plan_is_refused(base, bases):
    plan, own = base
    with pytest.raises(WeightsError, match=r"conv1.weight is absent"):
        TaskSwitch(plan, {n: v for n, v in own.state.items() if n != "conv1.weight"})
    with pytest.raises(WeightsError, match="the plan of cifar_resnet20 needs"):
        TaskSwitch(plan, own.state | {"conv1.weight": np.zeros((3, 3, 3, 3), np.float32)})


def test_what_is_made_while_predicting_can_be_trained_later(base, known):
    (task, *_), _ = known
    with torch.inference_mode():
        switch = switch_of(base, task)
        network = switch.switch("a")
        switch.update("a", {n: v.clone() for n, v in task.state.items()})
    for trained in (network, switch.switch("a")):
        trained.train()(torch.randn(4, 3, 32, 32)).sum().backward()
        torch.optim.SGD(trained.parameters(), 0.1).step()
    assert bits(switch.switch("a")) == bits(ordinary(base, task))
