"""The report of a run: one HTML file that needs nothing else, no network and no script."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedsprig.artifacts import write_bytes
from fedsprig_sim.report import charts, wording
from fedsprig_sim.result import ARMS, Result

__all__ = ["render", "write_report"]


def render(result: Result) -> str:
    """The report as HTML. Every name from outside is escaped."""
    environment = Environment(
        loader=PackageLoader("fedsprig_sim", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    arms = [arm for arm in ARMS if any(arm in task.arms for task in result.tasks)]
    return environment.get_template("page.html.j2").render(
        result=result,
        summary=wording.summary_sentence(result),
        means=result.mean_accuracy(),
        mean=result.mean,
        library={entry.name: entry for entry in result.library},
        scenario_json=json.dumps(result.scenario, indent=1, ensure_ascii=False),
        notes=wording.notes(result),
        arms=arms,
        titles=wording.ARM_TITLES,
        percent=wording.percent,
        human_bytes=wording.human_bytes,
        counted=wording.counted,
        difference=wording.difference,
        charts=charts,
    )


def write_report(result: Result, path: Path) -> Path:
    """Write the report and return its path."""
    write_bytes(path, render(result).encode())
    return path
