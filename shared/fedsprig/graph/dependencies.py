"""Torch-Pruning's dependency graph, read into :class:`fedsprig.graph.coupling.Coupling`.

The one module that imports Torch-Pruning, when it is used. Only its graph is used: what follows
from dropping a channel. Nothing is ever pruned with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedsprig.errors import PlanError
from fedsprig.graph.coupling import Coupling, Labels, Port, UnitClass
from fedsprig.graph.measure import NORMS, PRODUCERS, watch
from fedsprig.graph.rebuild import rebuild
from fedsprig.graph.standins import install_standins

CLASS_OUTPUTS = "outputs of the model (classes)"
_MAX_ITEMS = 5000
LAYER_NORM = "stream through layer normalisation"


class Dependencies:
    """The coupled channels of a model, by its own module paths.

    Attributes:
        head: path of the one layer that writes the model's outputs, ``""`` if there is none.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        """Trace a model; it is left as it is.

        Raises:
            PlanError: Torch-Pruning is not installed, or cannot read the model.
        """
        shared = {name: p.detach() for name, p in model.named_parameters()}
        self._model = rebuild(model, shared).eval().requires_grad_(True)
        self._linear, self._nothing = install_standins(self._model)
        self._paths = {module: path for path, module in self._model.named_modules()}
        self._names = {parameter: name for name, parameter in self._model.named_parameters()}
        self._graph = _read_graph(self._model, example)
        self._coupling = Coupling()
        self._couple(list(watch(self._model, example).calls))
        self._classes = self._coupling.classes()
        writers = {
            port[0]
            for found in self._classes
            if CLASS_OUTPUTS in found.reasons
            for port in found.ports
            if port[1] == "out"
        }
        self.head: str = writers.pop() if len(writers) == 1 else ""

    def classes(self) -> list[UnitClass]:
        """All units, prunable or not, in the order of their first producers."""
        return self._classes

    def path_of(self, port: Port) -> str:
        """The module path, in the base model, of what is at a port."""
        path, side = port
        if path in self._linear:
            tensor = self._linear[path][0 if side == "out" else 1][0][0]
            return tensor.rpartition(".")[0]
        return path

    def axes(self, port: Port) -> Iterator[tuple[str, int]]:
        """(tensor, axis) that shrink with the channels at a port, by the base model's names."""
        path, side = port
        if path in self._linear:
            yield from self._linear[path][0 if side == "out" else 1]
            return
        if side == "param":
            yield path, self._pruning_axis(path)
            return
        module = self._model.get_submodule(path)
        if side == "norm":
            for name in ("weight", "bias", "running_mean", "running_var"):
                if getattr(module, name, None) is not None:
                    yield f"{path}.{name}", 0
            return
        transposed = isinstance(module, nn.modules.conv._ConvNd) and module.transposed
        if side == "in":
            # A grouped convolution's weight has the width of one group: it loses outputs only.
            if getattr(module, "groups", 1) == 1:
                yield f"{path}.weight", 0 if transposed else 1
            return
        yield f"{path}.weight", 1 if transposed else 0
        if getattr(module, "bias", None) is not None:
            yield f"{path}.bias", 0

    def _couple(self, calls: list[str]) -> None:
        coupling = self._coupling
        modules = {
            path: self._model.get_submodule(path) for path in calls if path not in self._nothing
        }
        for path, module in modules.items():
            for side, size in _ports(module):
                coupling.declare((path, side), size)
        for parameter in self._graph.module2node:
            if isinstance(parameter, nn.Parameter):
                name = self._names[parameter]
                coupling.declare((name, "param"), parameter.shape[self._pruning_axis(name)])
        for path, module in modules.items():
            port = (path, "out")
            if port in coupling.labels and len(open_ := coupling.open(port)):
                self._follow(module, port, open_)
        for path, module in modules.items():
            ports: list[Port] = [(path, "in"), (path, "out")]
            if getattr(module, "groups", 1) > 1 and ports[0] in coupling.labels:
                coupling.tie(ports, int(cast(nn.Conv2d, module).groups))

    def _follow(self, module: nn.Module, port: Port, channels: Labels) -> None:
        """Label everything that follows from dropping ``channels`` of a producer."""
        coupling, graph = self._coupling, self._graph
        labels = coupling.new(len(channels))
        label_of = np.full(len(coupling.labels[port]), -1, dtype=np.int64)
        label_of[channels] = labels
        coupling.assign(port, channels, labels)
        try:
            prune = graph.get_pruner_of_module(module).prune_out_channels
            with _bounded():
                items = graph.get_pruning_group(module, prune, channels.tolist()).items
        except Exception as error:  # whatever the tracer may stumble over
            coupling.freeze(labels, f"the tracer failed here ({type(error).__name__})")
            return
        for item in items:
            node, positions = item.dep.target, np.asarray(item.idxs, dtype=np.int64)
            roots = label_of[np.asarray(item.root_idxs, dtype=np.int64)]
            target = self._port(node.module, item.dep.handler)
            if not node.outputs and (target is None or target[1] != "in"):
                coupling.freeze(roots, CLASS_OUTPUTS)
            if _adds(node):
                coupling.mark_stream(roots)
            if why := _why_whole(node.module):
                coupling.freeze(roots, why)
            elif target is not None:
                try:
                    coupling.assign(target, positions, roots)
                except IndexError:
                    coupling.freeze(roots, f"the tracer lost count of the channels at {target[0]}")

    def _port(self, module: Any, handler: Any) -> Port | None:
        if isinstance(module, nn.Parameter):
            return self._names[module], "param"
        path = self._paths.get(module)
        if path is None or path in self._nothing:  # an operation, or a layer for nothing
            return None
        if isinstance(module, PRODUCERS):
            is_out = self._graph.is_out_channel_pruning_fn(handler)
            return path, "out" if is_out else "in"
        return (path, "norm") if (path, "norm") in self._coupling.labels else None

    def _pruning_axis(self, name: str) -> int:
        parameter = self._model.get_parameter(name)
        return int(self._graph.module2node[parameter].pruning_dim) % parameter.ndim


@contextmanager
def _bounded() -> Iterator[None]:
    """End a group that grows without end.

    Where index maps disagree around a loop, the tracer walks it again with other indices each
    time. The largest group of the networks that we know has 800 items.
    """
    from torch_pruning.dependency import graph

    class BoundedGroup(graph.Group):  # type: ignore[misc]
        def add_dep(self, dep: Any, idxs: Any) -> None:
            if len(self.items) >= _MAX_ITEMS:
                raise RecursionError("a group without end")
            super().add_dep(dep, idxs)

    original, graph.Group = graph.Group, BoundedGroup
    try:
        yield
    finally:
        graph.Group = original


def _read_graph(model: nn.Module, example: Tensor) -> Any:
    try:
        import torch_pruning
    except ImportError:
        raise PlanError("tracing needs Torch-Pruning: pip install 'fedsprig[server]'") from None
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph()
            return graph.build_dependency(model, example, verbose=False)
    except Exception as error:
        raise PlanError(
            f"Torch-Pruning cannot read the graph of this model ({type(error).__name__}): "
            "choose another base model"
        ) from error


def _ports(module: nn.Module) -> list[tuple[str, int]]:
    """(side, channels) of a layer that channels pass through."""
    if isinstance(module, nn.Linear):
        return [("out", module.out_features), ("in", module.in_features)]
    if isinstance(module, nn.modules.conv._ConvNd):
        out = [("out", module.out_channels)]
        return out if _is_depthwise(module) else [*out, ("in", module.in_channels)]
    if isinstance(module, NORMS):
        return [("norm", module.num_features)]
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return [("norm", module.num_parameters)]
    return []


def _is_depthwise(module: nn.modules.conv._ConvNd) -> bool:
    return 1 < module.groups == module.out_channels == module.in_channels


def _why_whole(module: Any) -> str | None:
    """Why the channels at a layer must all stay, by the layer's kind; None if they need not."""
    if isinstance(module, nn.LayerNorm):
        return LAYER_NORM
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
        if module.transposed:
            return "grouped transposed convolution"
        if module.groups == module.out_channels != module.in_channels:
            return "convolution that merges groups of channels"
        return None
    if isinstance(module, nn.GroupNorm | nn.Embedding | nn.LSTM | nn.MultiheadAttention):
        return f"channels at {type(module).__name__}"
    return None


def _adds(node: Any) -> bool:
    """Whether a node of the tracer's graph is a sum of two computed tensors."""
    operation = str(getattr(node.module, "_grad_fn", ""))
    return operation.startswith(("AddBackward", "SubBackward")) and len(node.inputs) > 1
