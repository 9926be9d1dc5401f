"""Tracing: from a model and an example input to its group plan.

Torch-Pruning's dependency graph (Fang et al. 2023, arXiv 2301.12900) says which layers' channels
are coupled; explicit rules add what it cannot read (attention heads, padded shortcuts, grouped
convolutions); what cannot be proven safe is frozen with a reason. At the end the whole plan is
tried on random parameters (:mod:`fedsprig.graph.verify`).

Needs Torch-Pruning (extra ``server``); replaying a plan does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import Tensor, nn

from fedsprig.errors import PlanError
from fedsprig.graph.coupling import Port, UnitClass
from fedsprig.graph.dependencies import Dependencies
from fedsprig.graph.heads import head_group, head_layout, why_whole
from fedsprig.graph.measure import Pass, watch
from fedsprig.graph.plan import AxisMap, Group, GroupPlan, Kind, Role, Tap
from fedsprig.graph.rebuild import rebuild
from fedsprig.graph.verify import freeze_what_fails


def trace_groups(model: nn.Module, example_input: Tensor, *, name: str = "") -> GroupPlan:
    """Find all units of a model that can be pruned.

    Args:
        model: a base model with real tensors (not on the meta device); left as it is. Attention
            must be of a kind that can lose heads (:func:`fedsprig.models.build` sees to it), or
            its heads are frozen.
        example_input: one input, ``[1, 3, h, w]``; costs in the plan are for this size.
        name: the base model's name, for messages.

    Returns:
        The plan. It depends on the architecture and the input's size only, not on the weights.

    Raises:
        PlanError: the input is no batch of one, the model cannot run on it, or its graph cannot
            be read.
    """
    if example_input.ndim < 2 or example_input.shape[0] != 1:
        raise PlanError(f"an example input is a batch of 1, not {tuple(example_input.shape)}")
    if any(p.is_meta for p in model.parameters()):
        raise PlanError("a model on the meta device cannot be traced: build it on the CPU")
    model = rebuild(model, {key: p.detach() for key, p in model.named_parameters()}).eval()
    seen = watch(model, example_input)
    if not isinstance(seen.output, Tensor):
        raise PlanError("the model must return one tensor of logits to be traced")
    dependencies = Dependencies(model, example_input)
    groups, frozen = _channels(model, seen, dependencies)
    heads, whole_heads = _heads(model, seen)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    plan = GroupPlan(
        model=name,
        input_shape=tuple(example_input.shape),
        head=dependencies.head,
        groups=(*groups, *heads),
        shapes=shapes,
        macs_per_weight=seen.macs_per_weight,
        unit_macs={group.name: seen.head_macs[group.name] for group in heads},
        frozen={**frozen, **whole_heads},
        buffers=frozenset(key for key, _ in model.named_buffers() if key in shapes),
    )
    return freeze_what_fails(model, plan, example_input)


def _channels(
    model: nn.Module, seen: Pass, dependencies: Dependencies
) -> tuple[list[Group], dict[str, str]]:
    """Groups of channels, and why the others must stay."""
    groups: list[Group] = []
    frozen: dict[str, str] = {}
    unsafe = _unsafe_tensors(model, seen)
    taken: Counter[str] = Counter()
    for found in dependencies.classes():
        producers = [port for port in found.ports if port[1] == "out"]
        path = dependencies.path_of(producers[0])
        taken[path] += 1
        label = path if taken[path] == 1 else f"{path}#{taken[path]}"
        axes = tuple(_axes(found, dependencies))
        taps = _taps(found, producers, dependencies, seen)
        reasons = [*found.reasons, *(unsafe[a.tensor] for a in axes if a.tensor in unsafe)]
        if not taps:
            reasons.append("nothing that a hook can observe")
        if reasons:
            frozen[label] = reasons[0]
            continue
        kind: Kind = "stream" if found.is_stream else "inner"
        groups.append(Group(label, found.units, kind, axes, taps))
    return groups, frozen


def _axes(found: UnitClass, dependencies: Dependencies) -> Iterator[AxisMap]:
    roles: dict[str, Role] = {"out": "out", "in": "in", "norm": "norm", "param": "norm"}
    for port, positions in found.ports.items():
        for tensor, axis in dependencies.axes(port):
            yield AxisMap(tensor, axis, positions, roles[port[1]])


def _taps(
    found: UnitClass, producers: list[Port], dependencies: Dependencies, seen: Pass
) -> tuple[Tap, ...]:
    """After the producers' normalisations; where no producer has one, at their outputs."""
    normed: list[Tap] = []
    plain: list[Tap] = []
    for port in producers:
        path, positions = dependencies.path_of(port), found.ports[port]
        if seen.calls[path] != 1:  # a stand-in's own layers, or a weight used without its module
            continue
        norm = seen.norm_of.get(path)
        if norm is not None and seen.calls[norm] == 1:
            normed.append(Tap(norm, "output", 1, positions))
        else:
            plain.append(Tap(path, "output", seen.channel_axis[path], positions))
    return tuple(normed or plain)


def _unsafe_tensors(model: nn.Module, seen: Pass) -> dict[str, str]:
    """Tensors that serve two layers or two calls, and why that keeps their channels whole."""
    unsafe: dict[str, str] = {}
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = owners.setdefault(id(parameter), name)
        if first != name:
            unsafe[first] = unsafe[name] = f"{first} and {name} are one tensor"
        if seen.calls[name.rpartition(".")[0]] > 1:
            unsafe[name] = f"{name.rpartition('.')[0]} is used more than once"
    return unsafe


def _heads(model: nn.Module, seen: Pass) -> tuple[list[Group], dict[str, str]]:
    """Groups of attention heads, and why other heads must stay."""
    groups: list[Group] = []
    frozen: dict[str, str] = {}
    for path, module in model.named_modules():
        layout = head_layout(module)
        if (why := why_whole(module)) is not None:
            frozen[path] = why
        elif layout is not None and seen.calls[path] == 1:
            groups.append(head_group(path, module, layout))
        elif layout is not None:
            frozen[path] = f"{path} is called {seen.calls[path]} times, not once"
    return groups, frozen
