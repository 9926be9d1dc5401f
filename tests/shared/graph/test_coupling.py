"""Labels, joined and gathered into units: by hand, and against a slow reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.graph.coupling import Coupling

A, B, C = ("a", "out"), ("b", "out"), ("c", "in")


def at(*positions):
    return np.array(positions, dtype=np.int64)


def tables(found):
    return [{port: rows.tolist() for port, rows in one.ports.items()} for one in found]


def test_a_flatten_gives_every_unit_several_positions():
    coupling = Coupling()
    coupling.declare(A, 2)
    coupling.declare(C, 6)
    labels = coupling.new(2)
    coupling.assign(A, at(0, 1), labels)
    coupling.assign(C, at(0, 1, 2, 3, 4, 5), labels[[0, 0, 0, 1, 1, 1]])
    assert tables(coupling.classes()) == [{A: [[0], [1]], C: [[0, 1, 2], [3, 4, 5]]}]


def test_streams_with_an_offset_split_into_classes():
    """Channels 1 and 2 of b carry a's; 0 and 3 are b's own."""
    coupling = Coupling()
    coupling.declare(A, 2)
    coupling.declare(B, 4)
    first = coupling.new(2)
    coupling.assign(A, at(0, 1), first)
    coupling.assign(B, at(1, 2), first)
    assert coupling.open(B).tolist() == [0, 3]
    coupling.assign(B, coupling.open(B), coupling.new(2))
    assert tables(coupling.classes()) == [{A: [[0], [1]], B: [[1], [2]]}, {B: [[0], [3]]}]


def test_units_are_ordered_by_their_first_position():
    coupling = Coupling()
    coupling.declare(A, 3)
    coupling.declare(B, 3)
    labels = coupling.new(3)
    coupling.assign(A, at(2, 0, 1), labels)
    coupling.assign(B, at(0, 1, 2), labels)
    assert tables(coupling.classes()) == [{A: [[0], [1], [2]], B: [[1], [2], [0]]}]


def test_tied_blocks_are_one_unit_each_and_unfilled_ones_stay():
    coupling = Coupling()
    coupling.declare(A, 4)
    coupling.declare(C, 4)
    labels = coupling.new(4)
    coupling.assign(A, at(0, 1, 2, 3), labels)
    coupling.assign(C, at(0, 1, 2), labels[:3])
    coupling.tie([C, A], 2)
    whole, part = coupling.classes()
    assert {port: rows.tolist() for port, rows in whole.ports.items()} == {
        A: [[0, 1]],
        C: [[0, 1]],
    }
    assert whole.reasons == ()
    assert part.ports[A].tolist() == [[2, 3]]
    assert "nothing produces" in part.reasons[0]


def test_reasons_and_streams_reach_everything_that_is_joined_later():
    coupling = Coupling()
    coupling.declare(A, 2)
    coupling.declare(B, 2)
    one, two = coupling.new(2), coupling.new(2)
    coupling.assign(A, at(0, 1), one)
    coupling.freeze(one[:1], "why")
    coupling.mark_stream(two[1:])
    coupling.assign(B, at(0, 1), two)
    coupling.join(one, two)
    by_first = {int(c.ports[A][0, 0]): c for c in coupling.classes()}
    assert (by_first[0].reasons, by_first[0].is_stream) == (("why",), False)
    assert (by_first[1].reasons, by_first[1].is_stream) == ((), True)


def test_positions_that_a_port_does_not_have_are_refused():
    coupling = Coupling()
    coupling.declare(A, 2)
    with pytest.raises(IndexError, match="a has 2 positions, not 3"):
        coupling.assign(A, at(2), coupling.new(1))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    links=st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=12),
)
def test_units_are_the_connected_components(sizes, links):
    ports = [(f"p{i}", "out") for i in range(len(sizes))]
    nodes = [(port, i) for port, size in zip(ports, sizes, strict=True) for i in range(size)]
    links = [(nodes[a % len(nodes)], nodes[b % len(nodes)]) for a, b in links]
    coupling = Coupling()
    label = {}
    for port, size in zip(ports, sizes, strict=True):
        coupling.declare(port, size)
        fresh = coupling.new(size)
        coupling.assign(port, np.arange(size), fresh)
        label |= {(port, i): fresh[i : i + 1] for i in range(size)}
    for a, b in links:
        coupling.join(label[a], label[b])
    # The slow reference: grow each set until nothing changes.
    components = {frozenset(reach(node, links)) for node in nodes}
    found = set()
    for one in coupling.classes():
        for unit in range(one.units):
            found.add(frozenset((p, int(i)) for p, rows in one.ports.items() for i in rows[unit]))
    assert found == components


def reach(start, links):
    seen = {start}
    while True:
        more = {b for a, b in links if a in seen} | {a for a, b in links if b in seen}
        if more <= seen:
            return seen
        seen |= more
