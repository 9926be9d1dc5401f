"""A scenario as small as it goes, whose every part is real."""

import pytest
from safetensors.torch import save_file

from fedsprig.models import build
from fedsprig_server.base import Base
from fedsprig_server.library import Library
from fedsprig_sim.fleet import read_data, write_fleet
from fedsprig_sim.progress import Silence
from fedsprig_sim.runner import fill_library, run_scenario, server_config
from fedsprig_sim.scenario import Scenario

TABLES = {
    "name": "tiny",
    "seed": 3,
    "compare": ["magnitude"],
    "data": {"digits": {"kind": "embedded", "name": "digits"}},
    "library": {
        "images_per_class": 6,
        "steps": 2,
        "draws": [
            {
                "data": "digits",
                "prefix": "lib",
                "count": 2,
                "classes_per_task": 3,
                "cameras": ["plain", "invert"],
            }
        ],
    },
    "tasks": [
        {"name": "low", "data": "digits", "classes": ["0", "1", "2"]},
        {"name": "high", "data": "digits", "classes": ["7", "8", "9"], "camera": "invert"},
    ],
    # The devices of "low" have two widths, those of "high" one.
    "devices": {
        "per_task": 2,
        "images_per_class": 6,
        "test_images_per_class": 5,
        "budgets": ["small", "large", "small", "small"],
    },
    "budgets": {"small": {"macs_ratio": 0.2}, "large": {"macs_ratio": 0.5}},
    "adapter": {"rank": 2},
    "rounds": {"count": 2, "steps": 2},
}


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A base model: random weights, which the same seed draws everywhere."""
    path = tmp_path_factory.mktemp("base") / "weights.safetensors"
    save_file(build("cifar_resnet20", num_classes=4).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def scenario(weights):
    return Scenario.parse(TABLES | {"base": {"model": "cifar_resnet20", "weights": str(weights)}})


@pytest.fixture(scope="session")
def finished(scenario, tmp_path_factory):
    """The folder and the result of an undisturbed run."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    return out, run_scenario(scenario, out, runtime="in-process", progress=Silence())


@pytest.fixture(scope="session")
def world(scenario, tmp_path_factory):
    """Devices, a library of the operator's tasks and the server's settings, before any run."""
    out = tmp_path_factory.mktemp("world")
    base = Base.load(scenario.base.model, scenario.base.weights)
    sources = {name: read_data(data, seed=0) for name, data in scenario.data.items()}
    expansion = scenario.expand({name: source.train.classes for name, source in sources.items()})
    with Library(out / "library") as library:
        fill_library(library, base, expansion, sources, scenario, Silence())
    write_fleet(expansion, sources, scenario, out / "fleet")
    server_config(scenario, expansion, out / "library").save(out / "server.json")
    return out
