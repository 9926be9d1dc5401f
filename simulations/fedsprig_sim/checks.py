"""What `fedsprig doctor` looks at in the simulator."""

from __future__ import annotations

from collections.abc import Iterator

from fedsprig.doctor import Finding
from fedsprig.errors import ScenarioError
from fedsprig_sim.scenario import embedded_scenario, embedded_scenarios


def findings() -> Iterator[Finding]:
    """Whether the package's scenarios can be read."""
    for name in embedded_scenarios():
        try:
            scenario = embedded_scenario(name)
        except ScenarioError as error:
            yield Finding("scenarios", name, str(error), "reinstall fedsprig")
        else:
            yield Finding("scenarios", name, f"readable, {len(scenario.data)} sets of pictures")
