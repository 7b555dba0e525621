"""What a trace finds, leaves alone, and refuses."""

import copy

import pytest
import torch
from torch import Tensor, nn

from edgewise.errors import ModelError, UnsupportedOp
from edgewise.graph import trace
from edgewise.graph.trace import evaluating

EXAMPLE = torch.zeros(1, 3, 8, 8)


class Forward(nn.Module):
    def __init__(self, forward) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 1)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.body(x))


def test_an_operator_without_a_rule_names_itself_and_its_module() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Forward(lambda x: x), nn.Flatten())
    net[1] = nn.Sequential(Forward(lambda x: x))
    net[1][0].body = nn.Conv2d(4, 4, 1)
    net[1][0].function = lambda x: x.sort(1)[0]
    with pytest.raises(UnsupportedOp, match=r'aten\.sort\.default in module "1\.0" \(Forward\)'):
        trace(net, EXAMPLE)


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x if x.mean() > 0 else -x,
        lambda x: x[:, :, : int(x.abs().sum().item())],
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
    ],
)
def test_a_forward_that_depends_on_the_inputs_values_says_where(forward) -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), Forward(forward))
    with pytest.raises(UnsupportedOp, match=r'"1" \(Forward\)'):
        trace(net, EXAMPLE)


def test_a_forward_that_raises_keeps_its_own_message() -> None:
    def broken(x: Tensor) -> Tensor:
        raise KeyError("no such\nhead")

    with pytest.raises(ModelError, match=r"forward raised KeyError: 'no such"):
        trace(Forward(broken), EXAMPLE)


def test_an_output_that_is_not_one_tensor_is_refused() -> None:
    with pytest.raises(ModelError, match="must return one tensor, it returned tuple"):
        trace(Forward(lambda x: (x, x)), EXAMPLE)


def test_the_network_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(256, 2)).train()
    net[1].eval()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    random = torch.get_rng_state()
    trace(net, EXAMPLE)
    assert modes == [m.training for m in net.modules()]
    assert all(torch.equal(before[k], v) and v.device.type == "cpu" for k, v in net.state_dict().items())
    assert net[0].weight.grad is not None
    assert torch.equal(random, torch.get_rng_state())


def test_what_a_forward_keeps_for_later_is_forgotten() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head, self.cache = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), {}

        def forward(self, x: Tensor) -> Tensor:
            if "bias" not in self.cache:
                self.cache["bias"] = torch.arange(8.0, device=x.device)
                self.last = x
            return self.head(self.stem(x) + self.cache["bias"])

    net = Caching()
    assert trace(net, EXAMPLE).rigid == ()
    assert net.cache == {}
    assert not hasattr(net, "last")


def test_a_trace_that_fails_leaves_no_hooks_and_no_mode_behind() -> None:
    net = Forward(lambda x: x.sort(1)[0]).train()
    with pytest.raises(UnsupportedOp):
        trace(net, EXAMPLE)
    assert net.training
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert not torch.nn.modules.module._global_forward_hooks


def test_evaluating_gives_every_module_its_own_mode_back() -> None:
    net = nn.Sequential(nn.ReLU(), nn.ReLU()).train()
    net[0].eval()
    with evaluating(net):
        assert not any(m.training for m in net.modules())
    assert [m.training for m in net.modules()] == [True, False, True]


def test_shared_weights_are_one_tensor() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.body(self.stem(x))))

    graph = trace(Twice(), EXAMPLE)
    # The same weight reads the stem's channels and its own: they are the same eight.
    assert [(g.name, g.size) for g in graph.groups] == [("stem", 8)]


def test_a_module_under_two_names_keeps_its_weights() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 1)
            self.b = self.a
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(x))

    net = Named()
    weight = net.a.weight
    assert [(g.name, g.size) for g in trace(net, EXAMPLE).groups] == [("a", 8)]
    assert net.a.weight is weight
    assert net.b.weight is weight
    assert weight.device.type == "cpu"


def test_channels_that_reach_the_output_are_frozen() -> None:
    assert trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), EXAMPLE).groups == ()


def test_matrices_are_rows_of_every_tensor_the_group_owns() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1, bias=False))
    group = trace(net, EXAMPLE).groups[0]
    matrices = group.matrices({name: p.detach() for name, p in net.named_parameters()})
    assert set(matrices) == {"0.weight:0", "0.bias:0", "1.weight:0", "1.bias:0", "2.weight:1"}
    assert torch.equal(matrices["0.weight:0"], net[0].weight.detach().reshape(4, 3))
    assert torch.equal(matrices["2.weight:1"], net[2].weight.detach().reshape(5, 4).T)


def test_a_flattened_channel_owns_all_its_columns() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 64, 2))
    reads = next(m for m in trace(net, EXAMPLE).groups[0].members if m.reads)
    assert reads.index.shape == (4, 64)
    assert reads.index[1].tolist() == list(range(64, 128))


def test_what_never_runs_is_named_and_stays() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
            self.norm = nn.BatchNorm2d(8)  # whose count of batches nothing reads either, and nobody misses
            self.auxiliary = nn.Sequential(nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.stem(x))
            return self.head(y) + self.auxiliary(y) if self.training else self.head(y)

    graph = trace(Auxiliary().train(), EXAMPLE)
    assert [(g.name, g.size) for g in graph.groups] == [("stem", 8)]
    assert graph.unused == ("auxiliary.0.weight", "auxiliary.0.bias", "auxiliary.1.weight", "auxiliary.1.bias")


def test_a_trace_in_inference_mode_is_the_same() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(512, 2))
    with torch.inference_mode():
        inside = trace(net, torch.zeros(1, 3, 8, 8))
    assert inside.tracer.programme == trace(net, EXAMPLE).tracer.programme
    assert [g.size for g in inside.groups] == [8]
