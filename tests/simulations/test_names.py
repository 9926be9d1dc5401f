from __future__ import annotations

import pytest

from fedsprig.errors import FedsprigError, ScenarioError, UnknownModelError, UnknownNameError
from fedsprig_sim.names import check_names
from fedsprig_sim.scenario import Scenario, embedded_scenario

DEMO = embedded_scenario("demo").model_dump(mode="json", exclude_none=True)


def test_the_demo_names_what_there_is() -> None:
    check_names(embedded_scenario("demo"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"base": {"model": "sprig21"}}, UnknownModelError, "sprig20"),
        ({"library": {**DEMO["library"], "method": "tailor"}}, ScenarioError, "'taylor'"),
        ({"adapter": {"kind": "splorra"}}, ScenarioError, "unknown adapter.kind 'splorra': did"),
        ({"codecs": {"update": "int9"}}, ScenarioError, "unknown codecs.update 'int9'"),
        ({"selection": {"similarity": "prototype"}}, ScenarioError, "'prototypes'"),
        ({"selection": {"similarity": "leep"}}, ScenarioError, "selection.similarity"),
        ({"selection": {"rerank": "lep"}}, ScenarioError, "'leep'"),
        ({"selection": {"score_mask": "weigted"}}, ScenarioError, "'weighted'"),
        (
            {"selection": {"rerank": "leep", "score_mask": "mean"}},
            ScenarioError,
            "demo: selection.rerank with score_mask 'mean', which does not read",
        ),
        (
            {"draws": [{**DEMO["library"]["draws"][0], "prefix": "x", "cameras": ["inverted"]}]},
            UnknownNameError,
            "demo: task x: unknown camera 'inverted': did you mean 'invert'?",
        ),
    ],
)
def test_a_name_that_nobody_knows(
    changes: dict[str, object], error: type[FedsprigError], message: str
) -> None:
    with pytest.raises(error) as raised:
        check_names(Scenario.parse({**DEMO, **changes}))
    assert message in str(raised.value)
