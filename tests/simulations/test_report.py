from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsprig_sim.report import render
from fedsprig_sim.report.charts import _scale, strip
from fedsprig_sim.report.wording import difference, human_bytes, summary_sentence
from fedsprig_sim.result import GroupKept, Result, TruncationRecord

VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps them and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def test_the_page_needs_nothing_from_elsewhere(result: Result) -> None:
    html = render(result)
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"url\(|@import|//[a-z]", html)
    targets = [attrs["href"] for _, attrs in page.tags if "href" in attrs]
    ids = {attrs.get("id") for _, attrs in page.tags}
    assert targets == ["#task-" + str(i + 1) for i in range(5)]
    assert {target[1:] for target in targets} <= ids


def test_the_page_tells_what_the_issue_asks_for(result: Result) -> None:
    page = Page(render(result))
    task = result.tasks[1]
    for words in (
        summary_sentence(result),
        task.name,
        "Seen in pretraining.",
        "551 kB",
        "24.2 kB",
        f"{100 * task.arms['one_shot'].curve[-1]:.1f}",
        f"{100 * task.accuracy_after_cut:.1f}",
        "library-1",
        "layer3.2.conv1",
        "rotate90",
        "91.0 % on its own pictures",
        "shirts.device-2",
    ):
        assert words in page.text
    lines = [attrs for tag, attrs in page.tags if tag == "polyline"]
    assert len(lines) == len(result.tasks) * 4
    strips = [attrs for _, attrs in page.tags if attrs.get("class") == "strip"]
    assert len(strips) == len(result.tasks) * 3 * len(task.masks[0].groups)


def test_names_are_escaped(result: Result) -> None:
    evil = "<script>alert(1)</script>&\"'"
    tasks = [
        result.tasks[0].model_copy(
            update={"classes": (evil,), "note": evil, "camera": evil, "data": evil}
        )
    ]
    tasks[0] = tasks[0].model_copy(
        update={
            "name": evil,
            "masks": tuple(
                mask.model_copy(
                    update={
                        "groups": tuple(g.model_copy(update={"name": evil}) for g in mask.groups)
                    }
                )
                for mask in tasks[0].masks
            ),
            "neighbours": tuple(n.model_copy(update={"name": evil}) for n in tasks[0].neighbours),
        }
    )
    page = Page(
        render(
            result.model_copy(
                update={"tasks": tuple(tasks), "scenario": {"name": evil}, "name": evil}
            )
        )
    )
    assert "script" not in {tag for tag, _ in page.tags}
    assert evil in page.text


def test_a_run_without_comparisons_is_drawn(result: Result) -> None:
    alone = tuple(
        task.model_copy(update={"arms": {"one_shot": task.arms["one_shot"]}, "neighbours": ()})
        for task in result.tasks
    )
    page = Page(render(result.model_copy(update={"tasks": alone, "library": ()})))
    assert len([tag for tag, _ in page.tags if tag == "polyline"]) == len(alone)
    assert "points" not in page.text


@pytest.mark.parametrize(
    ("kept", "runs"),
    [([True] * 3 + [False] + [True], 4), ([False] * 5, 0)],
)
def test_a_strip_has_a_cell_for_every_kept_unit(kept: list[bool], runs: int) -> None:
    bits = np.packbits(np.array(kept)).tobytes().hex()
    drawn = strip(GroupKept(name="g", kind="inner", units=len(kept), bits=bits))
    assert drawn.count("M") == runs
    assert f'aria-label="{sum(kept)} of 5 units kept"' in drawn


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_an_axis_holds_its_values_and_hides_no_scale(values: list[float]) -> None:
    low, high, ticks = _scale(values)
    assert low - 1e-9 <= min(values) <= max(values) <= high + 1e-9
    assert high - low > 0.0999
    assert ticks[0] == low
    assert ticks[-1] == pytest.approx(high)
    assert 2 <= len(ticks) <= 7


def test_a_long_strip_is_drawn_in_runs() -> None:
    group = GroupKept(name="g", kind="inner", units=2048, bits="f0" * 256)
    drawn = strip(group)
    assert drawn.count("M") == 256
    assert "M2040 0h4v1h-4z" in drawn


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (17_408, "17.4 kB"), (999_600, "1.0 MB"), (4.3e6, "4.3 MB"),
     (123_456, "123 kB"), (2.5e9, "2.5 GB")],
)  # fmt: skip
def test_bytes_for_people(count: float, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("mine", "other", "text"),
    [
        (0.8, 0.77, "3.0 points above"),
        (0.8, 0.824, "2.4 points below"),
        (0.8, 0.80001, "level with"),
    ],
)
def test_differences_are_those_of_the_figures_shown(mine: float, other: float, text: str) -> None:
    assert difference(mine, other) == text


def test_the_summary_tells_what_refactoring_lost(result: Result) -> None:
    assert "Factoring" not in summary_sentence(result)
    lost = (TruncationRecord(worst=0.5, mean=0.1), TruncationRecord(worst=0.25, mean=0.2))
    task = result.tasks[0]
    arm = task.arms["one_shot"].model_copy(update={"truncation": lost})
    changed = task.model_copy(update={"arms": {**task.arms, "one_shot": arm}})
    told = summary_sentence(result.model_copy(update={"tasks": (changed, *result.tasks[1:])}))
    assert told.endswith("lost 15.0 % of a layer's change a round, 50.0 % at most.")
