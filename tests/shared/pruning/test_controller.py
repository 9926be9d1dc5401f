"""The controller by hand, against the published loop, and over any sequence of verdicts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsprig.pruning.aap.controller import Accepted, Controller


def test_it_rises_rolls_back_halves_and_gives_up():
    whole = Controller(4.0)
    first = whole.accept()
    assert (first.round, first.threshold, first.step) == (1, 4, 4)
    second = first.accept()
    assert (second.round, second.threshold) == (2, 8)
    third = second.reject()
    assert (third.threshold, third.step, third.failures) == (4 + 2, 2, 1)
    fourth = third.reject()
    assert (fourth.threshold, fourth.step, fourth.failures) == (4 + 1, 1, 2)
    retry = fourth.reject()
    assert (retry.threshold, retry.step, retry.failures) == (4, 0.5, 0)
    assert retry.retry
    assert retry.accepted == (Accepted(0, 0.0, 4.0),)
    after = retry.accept()
    assert (after.threshold, after.step, after.retry) == (4.5, 0.5, False)
    assert after.accepted[-1] == Accepted(5, 4.0, 0.5)
    lower = retry.reject()
    assert (lower.threshold, lower.step) == (2, 2)  # from the whole network, with half its step


def test_a_round_that_was_held_back_keeps_its_pace_and_halves_what_it_tried():
    second = Controller(4.0).accept().accept()  # to 8, from 4
    held = second.bounded(5.0)
    assert (held.threshold, held.step) == (5, 1)
    assert (held.accept().threshold, held.accept().step) == (9, 4)
    assert held.accept().accepted[-1] == Accepted(2, 5.0, 4.0)
    assert (held.reject().threshold, held.reject().step) == (4.5, 0.5)
    assert held.reject().accept().step == 0.5
    assert held.bounded(4.5).accept().step == 4
    assert second.bounded(3.0).step == 4  # below where it came from: no step to speak of
    assert Controller.from_json(json.loads(json.dumps(held.to_json()))) == held


def test_it_stops_where_nothing_is_left():
    assert Controller(1.0).reject() is None


def published(step, verdicts):
    """The loop as METHODS writes it down: thresholds, steps and the round that each begins with."""
    thresholds, steps, accepted, failures, base = [0.0], [step], [], 0, None
    found = []
    for number, good in enumerate(verdicts):
        found.append((thresholds[number], steps[number], base))
        if good:
            accepted.append(number)
            failures, base = 0, number
            steps.append(steps[number])
            thresholds.append(thresholds[number] + steps[-1])
            continue
        if not accepted:
            break
        base = accepted[-1]
        failures += 1
        if failures == 3:
            steps.append(steps[number] / 2)
            thresholds.append(thresholds[base])
            accepted.pop()
            failures = 0
        else:
            steps.append(steps[base] / 2**failures)
            thresholds.append(thresholds[base] + steps[-1])
    return found


@given(st.floats(1e-3, 1e3), st.lists(st.booleans(), max_size=40))
def test_it_is_the_published_loop(step, verdicts):
    verdicts = [True, *verdicts]
    controller, base, found = Controller(step), None, []
    for good in verdicts:
        if controller is None:
            break
        controller = Controller.from_json(json.loads(json.dumps(controller.to_json())))
        found.append((controller.threshold, controller.step, base))
        if good:
            base, controller = controller.round, controller.accept()
        else:
            base = controller.accepted[-1].round if controller.accepted else base
            controller = controller.reject()
    assert found == published(step, verdicts)


@given(st.floats(0.01, 90), st.floats(0.5, 8))
def test_it_approaches_a_limit_from_below(limit, step):
    """A response that is the threshold itself: what is accepted never crosses, the last is near."""
    controller, best = Controller(step), 0.0
    for _ in range(400):
        if controller is None or controller.step < step / 64:
            break
        if controller.threshold <= limit:
            best = max(best, controller.threshold)
            controller = controller.accept()
        else:
            controller = controller.reject()
    assert best <= limit
    assert limit - best <= step


def test_a_state_survives_json_to_the_bit():
    controller = Controller(0.1).accept().accept().reject()
    assert Controller.from_json(json.loads(json.dumps(controller.to_json()))) == controller
    assert controller.threshold == pytest.approx(0.15)
