"""The numbering of all channels, what is done to them at once, and the removal of those that are zero."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgewise.errors import RecipeError
from edgewise.export.verify import compare_networks
from edgewise.graph import trace
from edgewise.models import build
from edgewise.prune import Prune, prune, zero_channels
from edgewise.prune.channels import Channels, channels_to_zero, lowest, target, zero_invariant
from prune.by_hand import CHANNELS, EXAMPLE, put, rows, small_net, zero


def test_channels_a_sigmoid_reads_are_not_brought_to_zero() -> None:
    graph = trace(small_net(), EXAMPLE)
    assert [group.name for group in graph.groups] == ["stem", "a", "gate_in"]
    assert [group.name for group in zero_invariant(graph)] == ["stem", "a"]


def test_a_normalisation_that_shifts_what_is_zero_is_found() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.Conv2d(8, 4, 1))
    assert zero_invariant(trace(net, EXAMPLE)) == ()
    with pytest.raises(RecipeError, match="no channels that vanish"):
        channels_to_zero(net, EXAMPLE)
    assert zero_channels(trace(net, EXAMPLE)) == {}


def test_resnet18_has_as_many_as_the_authors_count() -> None:
    # num_groups of their CIFAR ResNet-18.
    assert len(channels_to_zero(build("resnet18", classes=10), torch.zeros(1, 3, 32, 32))) == 2880


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_sums_and_changes_are_those_of_each_channel_by_itself(layout: torch.memory_format) -> None:
    net = small_net().double().to(memory_format=layout)
    tensors = {name: parameter.detach() for name, parameter in net.named_parameters()}
    channels = channels_to_zero(net, EXAMPLE.double())
    generator = torch.Generator().manual_seed(0)
    others = {name: torch.randn(t.shape, generator=generator, dtype=t.dtype) for name, t in tensors.items()}
    names = {tensor.data_ptr(): name for name, tensor in tensors.items()}
    given = [others[names[tensor.data_ptr()]] for tensor in channels.tensors]
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    factor = torch.linspace(-1, 2, len(channels), dtype=torch.float64)

    dots = channels.dot(channels.tensors, given)
    assert channels.count.tolist() == [len(rows(before, *channel)) for channel in CHANNELS]
    channels.scale_(factor)
    channels.add_(given, factor + 1)
    for i, channel in enumerate(CHANNELS):
        x, y = rows(before, *channel), rows(others, *channel)
        assert dots[i].item() == pytest.approx((x * y).sum().item(), rel=1e-12)
        assert torch.allclose(rows(tensors, *channel), factor[i] * x + (factor[i] + 1) * y, rtol=1e-12)
        put(before, *channel, rows(tensors, *channel))
    assert all(torch.equal(tensors[name], before[name]) for name in before), "nothing else changed"


def test_zero_is_found_only_where_every_row_is() -> None:
    net = small_net()
    channels = channels_to_zero(net, EXAMPLE)
    tensors = {name: parameter.detach() for name, parameter in net.named_parameters()}
    for channel in (("stem", 3), ("a", 9)):
        put(tensors, *channel, torch.zeros_like(rows(tensors, *channel)))
    found = channels.zeros()
    assert found.nonzero().flatten().tolist() == [3, 21] == zero(tensors)
    tensors["a_norm.bias"][9] = 1e-30
    assert channels.zeros().nonzero().flatten().tolist() == [3]


scores = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=22, max_size=22)


@given(scores=scores, count=st.integers(0, 20), round_to=st.integers(1, 5), first=st.integers(0, 10))
def test_the_lowest_are_picked_by_index_and_something_is_left_of_each_group(
    scores: list[float], count: int, round_to: int, first: int
) -> None:
    channels = Channels(net := small_net(), zero_invariant(trace(net, EXAMPLE)))
    values = torch.tensor(scores)
    gone = lowest(values, channels, channels.none(), first)
    assert int(gone.sum()) == first, "exact under ties"
    picked = lowest(values, channels, gone, count, round_to)
    assert not (picked & gone).any()
    assert int(picked.sum()) <= count
    for g, size in enumerate(channels.sizes):
        here = torch.from_numpy(channels.group_of == g)
        before, after = int((here & ~gone).sum()), int((here & ~gone & ~picked).sum())
        assert after == before or (after >= round_to and after % round_to == 0)
        mine, others = values[here & picked], values[here & ~gone & ~picked]
        assert not len(mine) or not len(others) or mine.max() <= others.min()
        assert before <= size
    if round_to == 1:
        assert int(picked.sum()) == min(count, 22 - first - 2 + sum(_emptied(channels, gone)))


def _emptied(channels: Channels, gone: torch.Tensor) -> list[bool]:
    left = channels.sizes - np.bincount(channels.group_of[gone.numpy()], minlength=2)
    return [n == 0 for n in left]


def test_a_sparsity_that_no_group_survives_is_refused() -> None:
    channels = channels_to_zero(small_net(), EXAMPLE)
    assert target(channels, 0.5) == 11
    assert target(channels, 0.91) == 20
    with pytest.raises(RecipeError, match="21 of 22 channels; at most 20 can go, since each of the 2 groups keeps 1"):
        target(channels, 0.96)
    with pytest.raises(RecipeError, match="at most 6 can go"):
        target(channels, 0.5, round_to=8)


def test_what_is_zero_is_removed_exactly_and_nothing_else() -> None:
    net = small_net().eval()
    tensors = {name: parameter.detach() for name, parameter in net.named_parameters()}
    tensors["norm.bias"].normal_()  # so that a zero channel without its shift would be missed
    net.norm.running_mean.normal_()
    for channel in (("stem", 3), ("stem", 4), ("a", 0)):
        put(tensors, *channel, torch.zeros_like(rows(tensors, *channel)))
    tensors["gate_in.weight"][2], tensors["gate_in.bias"][2] = 0, 0  # half of it reaches the sigmoid's reader
    pruned = prune(net, EXAMPLE, Prune(allocate="zero"))
    kept = {name: index.tolist() for name, index in pruned.keep.items()}
    assert kept == {"stem": [0, 1, 2, 5, 6, 7, 8, 9, 10, 11], "a": [1, 2, 3, 4, 5, 6, 7, 8, 9]}
    images = torch.randn(8, 3, 8, 8)
    assert compare_networks(pruned.model, net, images, limit=1e-9, precision="float64").passed


def test_a_group_that_is_zero_throughout_takes_its_branch_or_keeps_one() -> None:
    net = small_net().eval()
    tensors = {name: parameter.detach() for name, parameter in net.named_parameters()}
    for channel in range(10):
        put(tensors, "a", channel, torch.zeros_like(rows(tensors, "a", channel)))
    graph = trace(net, EXAMPLE)
    images = torch.randn(8, 3, 8, 8)
    for branches, kept in ((True, []), (False, [0])):
        pruned = prune(net, EXAMPLE, Prune(allocate="zero", branches=branches))
        assert pruned.keep["a"].tolist() == kept
        assert compare_networks(pruned.model, net, images, limit=1e-9, precision="float64").passed
    for channel in range(12):
        put(tensors, "stem", channel, torch.zeros_like(rows(tensors, "stem", channel)))
    assert zero_channels(graph, branches=False)["stem"].tolist() == [0]


def test_zero_asks_for_no_budget() -> None:
    with pytest.raises(ValueError, match=r'keep_macs = 0\.5: allocate = "zero" asks for no budget'):
        Prune(allocate="zero", keep_macs=0.5)


def test_without_zeros_nothing_goes() -> None:
    pruned = prune(net := small_net(), EXAMPLE, Prune(allocate="zero"))
    assert pruned.keep == {}
    assert all(torch.equal(a, b) for a, b in zip(pruned.model.parameters(), net.parameters(), strict=True))
