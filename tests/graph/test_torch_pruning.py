"""Our groups are Torch-Pruning's: removing one channel there takes what our class of that channel owns.

Channel by channel, so that it does not matter that Torch-Pruning keeps concatenations by offsets. Around a grouped
convolution its pruners give it the channels at one offset of every group together; so does this test.
"""

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from edgewise.graph import Graph, trace
from torchvision_stub import declare

NETWORKS = ["resnet18", "vgg16_bn", "densenet121", "mobilenetv2_100", "regnetx_002", "regnety_002"]
Owned = frozenset[tuple[str, int, int]]  # (parameter, dimension, index)


def classes(graph: Graph) -> dict[tuple[str, int, int], Owned]:
    """Return what each channel owns of all weights, by every (weight, dim, index) of it."""
    found = {}
    for group in graph.groups:
        for channel in range(group.size):
            owned = frozenset(
                (member.tensor, member.dim, int(index))
                for member in group.members
                if member.tensor.endswith("weight")
                for index in member.index[channel]
            )
            found |= dict.fromkeys(owned, owned)
    return found


def removed(model: nn.Module, graph: object, root: nn.Module, channels: list[int]) -> Owned:
    """Return what Torch-Pruning would cut from the weights to remove a layer's output channels."""
    import torch_pruning as tp

    prune = tp.prune_linear_out_channels if isinstance(root, nn.Linear) else tp.prune_conv_out_channels
    if isinstance(root, nn.Conv2d) and root.groups == root.in_channels > 1:
        prune = tp.prune_depthwise_conv_out_channels
    names = {module: name for name, module in model.named_modules()}
    cut = set()
    for dependency, indices in graph.get_pruning_group(root, prune, idxs=channels):  # type: ignore[attr-defined]
        module = dependency.target.module
        if module not in names or getattr(module, "weight", None) is None:
            continue  # an operator without weights
        reads = dependency.handler in (tp.prune_conv_in_channels, tp.prune_linear_in_channels)
        size = module.weight.shape[int(reads)]  # a grouped convolution's inputs are counted within their group
        cut |= {(f"{names[module]}.weight", int(reads), int(index) % size) for index in indices}
    return frozenset(cut)


def with_offsets(model: nn.Module, cut: Owned, channel: int) -> list[int]:
    """Return a channel, and those at its offset in the other groups of a grouped convolution that is cut too."""
    layers = [model.get_submodule(name.rpartition(".")[0]) for name, _, _ in cut]
    grouped = {m.groups: m.out_channels for m in layers if isinstance(m, nn.Conv2d) and 1 < m.groups < m.in_channels}
    if not grouped:
        return [channel]
    ((groups, width),) = grouped.items()
    return [channel % (width // groups) + group * (width // groups) for group in range(groups)]


def channels_to_try(model: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """Yield three channels of each convolution and each inner linear layer."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            width = module.weight.shape[0]
            for channel in sorted({0, width // 3, width - 1}):
                yield name, module, channel


@pytest.mark.parametrize("name", NETWORKS)
def test_removing_a_channel_takes_the_same_rows(name: str) -> None:
    declare()
    import timm
    import torch_pruning as tp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(name, num_classes=5).eval()
        theirs = tp.DependencyGraph().build_dependency(model, torch.zeros(1, 3, 64, 64))
    ours = classes(trace(model, torch.zeros(1, 3, 64, 64)))
    tried = 0
    for path, module, channel in channels_to_try(model):
        together = with_offsets(model, removed(model, theirs, module, [channel]), channel)
        expected = removed(model, theirs, module, together)
        found = ours.get((f"{path}.weight", 0, channel))
        if found is None:  # a channel of the output, which nothing may remove
            assert module.weight.shape[0] == 5, path
            continue
        assert found == expected, (path, channel, sorted(found ^ expected)[:6])
        tried += 1
    assert tried > 10
