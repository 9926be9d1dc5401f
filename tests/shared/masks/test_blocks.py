"""Block masks: geometry, checks, equality, bytes, scores, solver."""

import contextlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsprig.artifacts import digest
from fedsprig.artifacts.container import pack, unpack
from fedsprig.errors import (
    ArtifactError,
    BudgetError,
    InfeasibleBudgetError,
    LabelRangeError,
    LimitError,
    PlanError,
    ScoreError,
    TruncatedArtifactError,
    UnknownNameError,
)
from fedsprig.masks.block_layers import blocks_of
from fedsprig.masks.block_layout import LONGEST, BlockLayout
from fedsprig.masks.block_scores import BlockScores, solve_blocks
from fedsprig.masks.blocks import BlockMask
from fedsprig.scoring.blocks import score_blocks_by_magnitude, score_blocks_by_taylor

sides = st.integers(1, 40)
layouts = st.builds(
    BlockLayout.of,
    st.dictionaries(st.text("abc.", min_size=1, max_size=4), st.tuples(sides, sides), max_size=4),
    st.tuples(st.integers(1, 35), st.integers(1, 35)),
)
seeds = st.integers(0, 2**32)


def drawn(layout, seed):
    """Any mask at all, empty layers included."""
    rng = np.random.default_rng(seed)
    return BlockMask(layout.split(rng.random(layout.blocks) < rng.random()), layout)


@pytest.fixture
def layout():
    """Blocks of 2x3: fc1 is cropped on both sides, fc2 on none."""
    return BlockLayout.of({"fc2.weight": (4, 3), "fc1.weight": (3, 7)}, (2, 3))


@pytest.fixture
def mask(layout):
    return BlockMask(
        {
            "fc1.weight": np.array([[1, 0, 1], [0, 1, 1]], bool),
            "fc2.weight": np.array([[0], [1]], bool),
        },
        layout,
    )


# Geometry


def test_edges_are_cropped(layout, mask):
    assert layout.names == ("fc1.weight", "fc2.weight")
    assert layout.grid("fc1.weight") == (2, 3)
    assert layout.weights("fc1.weight").tolist() == [[6, 6, 2], [3, 3, 1]]
    assert layout.blocks == mask.flat.size == 8
    assert mask.elements("fc1.weight").astype(int).tolist() == [
        [1, 1, 1, 0, 0, 0, 1],
        [1, 1, 1, 0, 0, 0, 1],
        [0, 0, 0, 1, 1, 1, 1],
    ]


@given(layout=layouts, seed=seeds)
@settings(max_examples=50)
def test_kept_weights_are_the_elements(layout, seed):
    mask = drawn(layout, seed)
    for name, out, inputs in layout.layers:
        assert layout.weights(name).sum() == out * inputs
        assert layout.weights(name)[mask.layers[name]].sum() == mask.elements(name).sum()


def test_a_block_larger_than_the_weight(layout):
    one = BlockMask.full(BlockLayout.of({"w": (10, 10)}, (32, 32)))
    assert one.flat.tolist() == [True]
    assert one.layout.weights("w").tolist() == [[100]]
    assert one.elements("w").shape == (10, 10)


def test_layouts_that_make_no_sense_are_refused():
    with pytest.raises(PlanError, match=r"shape \[4, 3, 3, 3\]: blocks need"):
        BlockLayout.of({"conv.weight": (4, 3, 3, 3)})
    with pytest.raises(PlanError, match="blocks need"):
        BlockLayout.of({"bias": (4,)})
    for block in ((0, 3), (2, -1), (True, 3), (2.0, 3), (LONGEST + 1, 3)):
        with pytest.raises(PlanError, match="use lengths"):
            BlockLayout.of({"w": (4, 3)}, block)
    with pytest.raises(PlanError, match="use lengths"):
        BlockLayout.of({"w": (4, 0)})
    with pytest.raises(PlanError, match="named twice"):
        BlockLayout((("w", 4, 3), ("w", 4, 4)))
    assert BlockLayout.of({"w": (4, 3, 1, 1)}) == BlockLayout.of({"w": (4, 3)})


def test_masks_that_do_not_fit_are_refused(layout, mask):
    shapes = {"fc1.weight": (3, 7), "fc2.weight": (4, 3, 1, 1), "more.weight": (2, 2)}
    mask.check(shapes)
    with pytest.raises(PlanError, match=r"names fc2\.weight"):
        mask.check({"fc1.weight": (3, 7)})
    with pytest.raises(PlanError, match=r"fc1\.weight \[3, 7\], the model has \[3, 8\]"):
        mask.check({**shapes, "fc1.weight": (3, 8)})
    with pytest.raises(PlanError, match=r"has \[4, 3, 3, 3\]"):
        mask.check({**shapes, "fc2.weight": (4, 3, 3, 3)})
    empty = BlockMask({**mask.layers, "fc2.weight": np.zeros((2, 1), bool)}, layout)
    with pytest.raises(PlanError, match=r"drops all of fc2\.weight"):
        empty.check(shapes)
    with pytest.raises(PlanError, match=r"blocks 3x2 for fc1\.weight, its layout has 2x3"):
        BlockMask({**mask.layers, "fc1.weight": np.ones((3, 2), bool)}, layout)
    with pytest.raises(PlanError, match=r"none for fc2\.weight"):
        BlockMask({"fc1.weight": mask.layers["fc1.weight"]}, layout)
    with pytest.raises(PlanError, match="layout has none"):
        BlockMask({**mask.layers, "fc3.weight": np.ones((1, 1), bool)}, layout)
    with pytest.raises(PlanError, match="use bool"):
        BlockMask({**mask.layers, "fc1.weight": np.ones((2, 3))}, layout)
    with pytest.raises(PlanError, match=r"no blocks of fc9\.weight"):
        mask.elements("fc9.weight")


def test_masks_cannot_be_changed(layout):
    given_blocks = {n: np.ones(layout.grid(n), bool) for n in layout.names}
    mask = BlockMask(given_blocks, layout)
    given_blocks["fc1.weight"][:] = False
    assert mask == BlockMask.full(layout)
    for array in (mask.flat, mask.layers["fc1.weight"]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = False


# Equality


def test_equality_and_bytes_do_not_depend_on_the_order_of_layers(layout, mask):
    other = BlockMask(dict(reversed(mask.layers.items())), layout)
    assert (mask, hash(mask), mask.to_bytes()) == (other, hash(other), other.to_bytes())
    flipped = BlockMask({**mask.layers, "fc2.weight": ~mask.layers["fc2.weight"]}, layout)
    assert flipped != mask
    assert flipped.to_bytes() != mask.to_bytes()


@given(layout=layouts, one=seeds, two=seeds)
@settings(max_examples=50)
def test_masks_are_equal_if_they_keep_the_same_of_the_same(layout, one, two):
    a, b = drawn(layout, one), drawn(layout, two)
    assert (a == b) == (set(np.flatnonzero(a.flat)) == set(np.flatnonzero(b.flat)))
    other = BlockLayout(layout.layers, (layout.block[0] + 40, layout.block[1] + 40))
    if layout.layers:
        assert BlockMask.full(other) != BlockMask.full(layout)


# Bytes


@given(layout=layouts, seed=seeds)
@settings(max_examples=50)
def test_a_mask_survives_the_round_trip(layout, seed):
    mask = drawn(layout, seed)
    data = mask.to_bytes()
    assert BlockMask.from_bytes(data) == mask
    assert BlockMask.from_bytes(data).to_bytes() == data


def test_the_bytes_are_these(mask):
    """Golden: metadata, then block (0, 0) of fc1 in the lowest bit, row by row, then fc2."""
    arrays, metadata = unpack(mask.to_bytes())
    assert arrays.keys() == {"bits"}
    assert arrays["bits"].tolist() == [0b10_110_101]
    assert metadata == {
        "kind": "block mask",
        "version": "1",
        "block": "[2,3]",
        "layers": '[["fc1.weight",3,7],["fc2.weight",4,3]]',
    }
    assert (
        digest(mask.to_bytes())
        == "8d94904b47cbb813bb6700226edcc571c130633468bb84ebaa6027de717c9618"
    )


def spoilt(mask, bits=None, **metadata):
    """The bytes of a mask with parts of them replaced."""
    arrays, text = unpack(mask.to_bytes())
    text |= {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    return pack(arrays if bits is None else bits, text)


BAD_TABLES = {
    "no JSON": "[",
    "deep": "[" * 100_000,
    "no list": {},
    "no row": [3],
    "no name": [["", 3, 7]],
    "a name with a line break": [["fc1\n", 3, 7]],
    "a name that is a number": [[1, 3, 7]],
    "a row too short": [["fc1.weight", 3]],
    "a row too long": [["fc1.weight", 3, 7, 1]],
    "an axis of zero": [["fc1.weight", 0, 7]],
    "an axis below zero": [["fc1.weight", -3, 7]],
    "an axis of a float": [["fc1.weight", 3.0, 7]],
    "an axis of a bool": [["fc1.weight", True, 7]],
    "an axis beyond reason": [["fc1.weight", 2**63, 7]],
    "a layer twice": [["fc1.weight", 3, 7], ["fc1.weight", 3, 7]],
    "another order": [["fc2.weight", 4, 3], ["fc1.weight", 3, 7]],
    "too many layers": [[f"{i:09}", 1, 1] for i in range((1 << 14) + 1)],
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_of_layers_is_refused(mask, name):
    with pytest.raises(ArtifactError):
        BlockMask.from_bytes(spoilt(mask, layers=BAD_TABLES[name]))


@pytest.mark.parametrize("block", ["", "3", "[2]", "[2,3,4]", "[0,3]", "[2,true]", "[2,1e9]", "{}"])
def test_a_bad_block_is_refused(mask, block):
    with pytest.raises(ArtifactError):
        BlockMask.from_bytes(spoilt(mask, block=block))


def test_a_table_that_claims_more_blocks_than_there_are_bits_allocates_nothing(mask):
    huge = [[f"w{i:02}", LONGEST, LONGEST] for i in range(100)]
    with pytest.raises(TruncatedArtifactError, match="has 1 of"):
        BlockMask.from_bytes(spoilt(mask, layers=huge, block=[1, 1]))
    # ... and a mask of few huge blocks is only small numbers until someone expands it.
    one = spoilt(mask, {"bits": np.array([1], np.uint8)}, layers=huge[:1], block=[LONGEST] * 2)
    assert BlockMask.from_bytes(one).layout.weights("w00").tolist() == [[LONGEST**2]]


def test_wrong_bits_are_refused(mask):
    byte = np.array([0xFF], np.uint8)
    fits = BlockMask.from_bytes(spoilt(mask, {"bits": byte}))
    assert fits == BlockMask.full(mask.layout)
    fewer = [["fc1.weight", 3, 7]]
    for bits, layers, why in (
        (np.array([255, 0], np.uint8), None, "more bits"),
        (byte, fewer, "more bits"),
        (byte.astype(np.int32), None, "no uint8"),
        (byte[None], None, "no uint8"),
    ):
        table = {} if layers is None else {"layers": layers}
        with pytest.raises(ArtifactError, match=why):
            BlockMask.from_bytes(spoilt(mask, {"bits": bits}, **table))
    with pytest.raises(TruncatedArtifactError, match="0 of 1"):
        BlockMask.from_bytes(spoilt(mask, {"bits": byte[:0]}))
    with pytest.raises(ArtifactError, match="no uint8"):
        BlockMask.from_bytes(spoilt(mask, {"other": byte}))
    with pytest.raises(LimitError):
        BlockMask.from_bytes(spoilt(mask, {"bits": byte, "more": byte}))


def test_bytes_of_something_else_are_refused(mask):
    for change in ({"kind": "score set"}, {"version": "2"}):
        with pytest.raises(ArtifactError, match="no block mask"):
            BlockMask.from_bytes(spoilt(mask, **change))


@given(cut=st.integers(0, 400), flip=st.integers(0, 8 * 400))
@settings(max_examples=100)
def test_damaged_bytes_are_a_mask_or_a_named_error(cut, flip):
    layout = BlockLayout.of({"fc2.weight": (4, 3), "fc1.weight": (3, 7)}, (2, 3))
    data = bytearray(drawn(layout, 1).to_bytes())
    with pytest.raises(ArtifactError):
        BlockMask.from_bytes(bytes(data[: min(cut, len(data) - 1)]))
    data[flip // 8 % len(data)] ^= 1 << flip % 8
    with contextlib.suppress(ArtifactError):
        BlockMask.from_bytes(bytes(data)).to_bytes()


# Scores


class Net(nn.Module):
    """A 1x1 convolution, two linear layers, things without blocks, and a head."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 5, 1)
        self.wide = nn.Conv2d(5, 5, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.fc1 = nn.Linear(5, 7)
        self.head = nn.Sequential(nn.Linear(7, 3))

    def forward(self, x):
        x = torch.relu(self.wide(torch.relu(self.conv(x)))).mean((2, 3))
        return self.head(torch.relu(self.fc1(x)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def batches(count=2):
    generator = torch.Generator().manual_seed(1)
    sizes = (4, 2, 3)[:count]
    return [(torch.randn(n, 2, 3, 3, generator=generator), torch.arange(n) % 3) for n in sizes]


def slow_blocks(matrix, p, q):
    return [
        [matrix[i : i + p, j : j + q] for j in range(0, matrix.shape[1], q)]
        for i in range(0, matrix.shape[0], p)
    ]


def test_which_layers_have_blocks(net):
    assert blocks_of(net, head="head", block=(2, 2)).layers == (
        ("conv.weight", 5, 2),
        ("fc1.weight", 7, 5),
    )
    assert "head.0.weight" in blocks_of(net, head="").names
    assert blocks_of(nn.Linear(3, 4), head="").names == ("weight",)
    with pytest.raises(PlanError, match="unknown head 'haed'"):
        blocks_of(net, head="haed")


@pytest.mark.parametrize("norm", ["rms", "l1"])
def test_magnitude_is_that_of_the_blocks(net, norm):
    layout = blocks_of(net, head="head", block=(2, 3))
    scores = score_blocks_by_magnitude(net, layout, norm=norm)
    for name in layout.names:
        matrix = net.get_parameter(name).detach().flatten(1)
        for row, blocks in enumerate(slow_blocks(matrix, 2, 3)):
            for column, block in enumerate(blocks):
                expected = block.square().mean().sqrt() if norm == "rms" else block.abs().sum()
                assert scores.layers[name][row, column] == pytest.approx(float(expected))


def test_taylor_is_the_change_of_the_loss_when_a_block_goes(net):
    """First order: against the difference of the loss when a block shrinks a little."""
    layout = blocks_of(net, head="head", block=(2, 3))
    net.double()
    data = [(x.double(), y) for x, y in batches()]
    before = {name: p.requires_grad for name, p in net.named_parameters()}
    net.train()
    scores = score_blocks_by_taylor(net, layout, iter(data))
    assert net.training
    assert all(p.grad is None for p in net.parameters())
    assert before == {name: p.requires_grad for name, p in net.named_parameters()}
    net.requires_grad_(False)  # a frozen base is scored alike
    assert np.array_equal(score_blocks_by_taylor(net, layout, data).flat, scores.flat)
    step = 1e-6
    for name in layout.names:
        weight = net.get_parameter(name)
        matrix = weight.data.flatten(1)
        for row, blocks in enumerate(slow_blocks(matrix, 2, 3)):
            for column, block in enumerate(blocks):
                total = 0.0
                for x, y in data:
                    losses = []
                    for factor in (1 - step, 1 + step):
                        kept = block.clone()
                        block.mul_(factor)
                        losses.append(float(nn.functional.cross_entropy(net(x), y)))
                        block.copy_(kept)
                    total += abs(losses[1] - losses[0]) / (2 * step) * len(x)
                expected = total / sum(len(x) for x, _ in data)
                found = scores.layers[name][row, column]
                assert found == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_scores_that_cannot_be_are_refused(net, layout):
    own = blocks_of(net, head="head", block=(2, 3))
    with pytest.raises(PlanError, match=r"no fc1\.weight of shape \[3, 7\]"):
        score_blocks_by_magnitude(net, layout)
    with pytest.raises(UnknownNameError, match="no norm 'l2'"):
        score_blocks_by_magnitude(net, own, norm="l2")
    with pytest.raises(ScoreError, match="at least one batch"):
        score_blocks_by_taylor(net, own, [])
    x, y = batches(1)[0]
    with pytest.raises(LabelRangeError, match="labels run from 0 to 3"):
        score_blocks_by_taylor(net, own, [(x, y + (y == 2))])
    nn.init.zeros_(net.head[0].weight)
    with pytest.raises(ScoreError, match="does not depend"):
        score_blocks_by_taylor(net, own, batches())
    with torch.no_grad():
        net.fc1.weight[6, 4] = float("inf")
    with pytest.raises(ScoreError, match=r"block \(3, 1\) of fc1\.weight has the score inf"):
        score_blocks_by_magnitude(net, own)
    with pytest.raises(PlanError, match="use float"):
        BlockScores({n: np.ones(own.grid(n), bool) for n in own.names}, own)


def test_normalised_layers_have_a_root_mean_square_of_one(layout):
    scores = BlockScores(
        {"fc1.weight": np.array([[3, 0, 0], [0, 4, 0.0]]), "fc2.weight": np.zeros((2, 1))}, layout
    )
    normal = scores.normalised().layers
    assert np.mean(normal["fc1.weight"] ** 2) == pytest.approx(1)
    assert normal["fc1.weight"][1, 1] / normal["fc1.weight"][0, 0] == pytest.approx(4 / 3)
    assert not normal["fc2.weight"].any()


# Solver


def random_scores(layout, seed):
    """Few different values, so that ties are many."""
    flat = np.random.default_rng(seed).integers(0, 5, layout.blocks).astype(np.float32)
    return BlockScores(layout.split(flat), layout)


@given(
    layout=layouts,
    seed=seeds,
    keeps=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    floor=st.floats(0, 0.3),
    scope=st.sampled_from(["global", "layer"]),
)
@settings(max_examples=100)
def test_masks_are_nested_keep_their_share_and_leave_no_layer_empty(
    layout, seed, keeps, floor, scope
):
    scores = random_scores(layout, seed)
    masks = []
    for keep in sorted(keeps):
        try:
            masks.append(solve_blocks(scores, keep, scope=scope, floor=floor))
        except InfeasibleBudgetError:
            assert scope == "global"
            assert not masks, "a larger budget is infeasible where a smaller one was not"
            continue
        for name in layout.names:
            least = max(1, int(np.ceil(floor * masks[-1].layers[name].size - 1e-9)))
            assert np.count_nonzero(masks[-1].layers[name]) >= least
            if scope == "layer":
                share = int(keep * masks[-1].layers[name].size + 1e-9)
                assert np.count_nonzero(masks[-1].layers[name]) == max(least, share)
        if scope == "global":
            assert np.count_nonzero(masks[-1].flat) == int(keep * layout.blocks + 1e-9)
    if len(masks) == 2:
        assert not (masks[0].flat & ~masks[1].flat).any()


@given(layout=layouts, seed=seeds, keep=st.floats(0.5, 1))
@settings(max_examples=50)
def test_the_best_blocks_stay(layout, seed, keep):
    scores = random_scores(layout, seed)
    mask = solve_blocks(scores, keep, scope="layer", floor=0)
    for name in layout.names:
        kept, values = mask.layers[name], scores.layers[name]
        assert not (~kept).any() or values[kept].min() >= values[~kept].max()


def test_globally_the_best_of_all_layers_stay_above_the_floors(layout):
    scores = BlockScores(
        {
            "fc1.weight": np.array([[9, 9, 9], [9, 1, 2]]),  # root mean square 7.4
            "fc2.weight": np.array([[3], [0.0]]),  # 2.1
        },
        layout,
    )
    mask = solve_blocks(scores, 0.5, floor=0)
    # fc2's best, 3 / 2.1, is above 9 / 7.4; of the equal ones the first stay
    assert mask.layers["fc2.weight"].tolist() == [[True], [False]]
    assert mask.layers["fc1.weight"].tolist() == [[True, True, True], [False, False, False]]
    floored = solve_blocks(scores, 0.75, floor=0.6)
    assert {name: blocks.sum() for name, blocks in floored.layers.items()} == {
        "fc1.weight": 4,
        "fc2.weight": 2,
    }


def test_budgets_that_cannot_be_are_refused(layout):
    scores = random_scores(layout, 0)
    with pytest.raises(
        InfeasibleBudgetError, match="smallest mask has 6 blocks, 2 over the 4 allowed: raise keep"
    ):
        solve_blocks(scores, 0.5, floor=0.51)
    for bad in ({"keep": 1.1}, {"keep": -0.1}, {"keep": float("nan")}, {"keep": 1, "floor": 2}):
        with pytest.raises(BudgetError, match="ratio of blocks"):
            solve_blocks(scores, **bad)
    with pytest.raises(BudgetError, match="use 'global' or 'layer'"):
        solve_blocks(scores, 0.5, scope="galaxy")
