"""The walk over a forward pass: peaks and MACs by hand, and against PyTorch's own allocator."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from fedsprig.errors import PlanError
from fedsprig.masks import Cost, cost


class Calls(nn.Module):
    """A module from a function of itself and the input."""

    def __init__(self, call, **modules):
        super().__init__()
        self.call = call
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.call(self, x)


def conv(inputs, outputs, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, **options)


# The input is [1, 1, 4, 4]: 16 floats, 64 bytes, alive throughout.
PEAKS = {
    # input 64, conv 128, its relu 128
    "chain": (nn.Sequential(conv(1, 2), nn.ReLU()), 64 + 128 + 128),
    "in place": (nn.Sequential(conv(1, 2), nn.ReLU(inplace=True)), 64 + 128),
    # the second convolution: 128 in, 64 out; the first map is free before the last layer makes 64
    "freed": (nn.Sequential(conv(1, 2), conv(2, 1), conv(1, 1)), 64 + 128 + 64),
    # the Sequential holds its argument only as long as the next needs it, the sum needs both
    "residual": (Calls(lambda m, x: m.b(m.a(x)) + x, a=conv(1, 2), b=conv(2, 1)), 64 + 128 + 64),
    # a name keeps a map alive: x 64, y 128, z 64, and the sum 64
    "kept": (
        Calls(lambda m, x: [y := m.a(x), z := m.b(y), z + y.sum()][-1], a=conv(1, 2), b=conv(2, 1)),
        64 + 128 + 64 + 4 + 64,
    ),
    # views add nothing
    "views": (
        Calls(lambda m, x: x.flatten(1).view(2, 8).t()[2:].unsqueeze(0).expand(3, 6, 2)),
        64,
    ),
    # 2x2 pooling: 4 floats and 4 indices of 8 bytes, the indices die at once
    "pooling": (nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), 64 + 16 + 32),
    # branches 128 each stay for the concatenation of 256
    "concatenation": (
        Calls(lambda m, x: torch.cat([m.a(x), m.b(x)], 1), a=conv(1, 2), b=conv(1, 2)),
        64 + 128 + 128 + 256,
    ),
    # normalisation in evaluation: statistics cost nothing
    "normalisation": (nn.Sequential(conv(1, 2), nn.BatchNorm2d(2)), 64 + 128 + 128),
    # half precision: half the bytes, and the input beside its copy
    "dtypes": (Calls(lambda m, x: x.half() + 1), 64 + 32 + 32),
    # what the network makes of nothing counts too
    "constants": (Calls(lambda m, x: x + torch.zeros(4)), 64 + 16 + 64),
}


@pytest.mark.parametrize("name", PEAKS)
def test_peaks_by_hand(name):
    network, expected = PEAKS[name]
    assert cost(network, torch.zeros(1, 1, 4, 4)).peak_bytes == expected


MACS = {
    "convolution": (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 5), 2 * 25 * 6 * 4 * 9),
    "stride": (nn.Conv2d(4, 6, 3, stride=2), (1, 4, 5, 5), 4 * 6 * 4 * 9),
    "groups": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (1, 4, 5, 5), 25 * 6 * 2 * 9),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (1, 4, 5, 5), 25 * 4 * 9),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2), (2, 4, 5, 5), 2 * 25 * 4 * 6 * 4),
    "linear": (nn.Linear(4, 6), (7, 4), 7 * 24),
    "linear without bias on tokens": (nn.Linear(4, 6, bias=False), (2, 7, 4), 14 * 24),
    "attention": (
        Calls(lambda m, x: F.scaled_dot_product_attention(x, x, x)),
        (2, 3, 5, 4),
        2 * 3 * 2 * 5 * 5 * 4,
    ),
    "batched product": (Calls(lambda m, x: x @ x.transpose(1, 2)), (2, 3, 5), 2 * 3 * 3 * 5),
    "no products": (nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), (1, 4, 4, 4), 0),
}


@pytest.mark.parametrize("name", MACS)
def test_macs_by_hand(name):
    network, shape, expected = MACS[name]
    assert cost(network, torch.zeros(shape)).macs == expected


def test_parameters_are_counted_once_and_buffers_never():
    shared = nn.Linear(3, 3)
    network = nn.Sequential(shared, shared, nn.BatchNorm1d(3))
    assert cost(network, torch.zeros(1, 3)).parameters == 12 + 6


class Block(nn.Module):
    """A transformer block and a concatenation: no kernel in it needs workspace of its own."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.wide = nn.Linear(32, 96)
        self.back = nn.Linear(96, 32)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        y = x + self.back(F.gelu(self.wide(self.norm(x))))
        return self.head(torch.cat([x, y.softmax(-1)], -1)).mean(1)


def test_the_peak_is_what_the_allocator_sees():
    network, x = Block().eval(), torch.randn(2, 50, 32)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        network(x)
    live = highest = x.untyped_storage().nbytes()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    assert len(events) > 10
    assert cost(network, x).peak_bytes == highest


def test_the_network_is_left_as_it_was(tiny_net):
    tiny_net.train()
    before = copy.deepcopy(tiny_net.state_dict())
    x = torch.ones(1, 2, 4, 4)
    first = cost(tiny_net, x)
    assert tiny_net.training
    assert all(p.device.type == "cpu" and p.requires_grad for p in tiny_net.parameters())
    for name, value in tiny_net.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(x, torch.ones(1, 2, 4, 4))
    assert cost(tiny_net.to("meta"), x) == first


def test_cost_of_the_tiny_network_by_hand(tiny_net):
    """Input 128, ``x`` (which the forward pass still names) 256, conv2 384 and its relu 384."""
    assert cost(tiny_net, torch.zeros(1, 2, 4, 4)) == Cost(317, 4626, 128 + 256 + 384 + 384)


def test_a_batch_costs_its_pictures(tiny_net):
    one, four = (cost(tiny_net, torch.zeros(n, 2, 4, 4)) for n in (1, 4))
    assert (four.macs, four.peak_bytes) == (4 * one.macs, 4 * one.peak_bytes)
    assert four.parameters == one.parameters


def test_a_pass_that_asks_for_values_is_refused():
    asks = Calls(lambda m, x: x if x.sum() > 0 else -x)
    with pytest.raises(PlanError, match="asks for no values") as caught:
        cost(asks, torch.zeros(1, 3))
    assert "\n" not in str(caught.value)


def test_an_input_of_the_wrong_shape_is_refused(tiny_net):
    with pytest.raises(PlanError, match="check the input's shape"):
        cost(tiny_net, torch.zeros(1, 3, 4, 4))
