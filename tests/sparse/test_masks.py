"""Masks of single weights: by hand, against torch.nn.utils.prune, exact under ties, and the edges."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from edgewise.models import build
from edgewise.sparse import apply_, keep_masks, keep_n_of_m, masked, prunable, score
from edgewise.sparse.blocks import block_sizes, block_sums

SPARSITIES = [0.1, 0.25, 0.5, 0.9]


def net() -> nn.Module:
    torch.manual_seed(0)
    return build("convnext_atto", classes=10, size=32, width=0.25)


def layers(model: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(module, "weight") for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    return [getattr(module, name).detach() for module, name in layers(model)]


def test_by_hand() -> None:
    weights = {"a": torch.tensor([[0.1, -3.0, 0.5], [2.0, -0.2, 1.0]]), "b": torch.tensor([0.3, -0.4])}
    scores = score(weights, "l1")
    local = keep_masks(scores, 0.5, "local")
    assert local["a"].tolist() == [[False, True, False], [True, False, True]]
    assert local["b"].tolist() == [False, True]
    together = keep_masks(scores, 0.5, "global")
    assert together["a"].tolist() == [[False, True, True], [True, False, True]]
    assert together["b"].tolist() == [False, False]


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_local_is_torchs_l1_unstructured(sparsity: float) -> None:
    model, oracle = net(), net()
    sparse = masked(model, keep_masks(score(prunable(model), "l1"), sparsity, "local"))
    for module, name in layers(oracle):
        torch_prune.l1_unstructured(module, name, amount=sparsity)
    assert all(map(torch.equal, weights_of(sparse), weights_of(oracle)))


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_global_is_torchs_global_unstructured(sparsity: float) -> None:
    model, oracle = net(), net()
    sparse = masked(model, keep_masks(score(prunable(model), "l1"), sparsity, "global"))
    torch_prune.global_unstructured(layers(oracle), pruning_method=torch_prune.L1Unstructured, amount=sparsity)
    assert all(map(torch.equal, weights_of(sparse), weights_of(oracle)))


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("scope", ["local", "global"])
def test_random_takes_as_many_as_torchs(sparsity: float, scope: str) -> None:
    model, oracle = net(), net()
    keep = keep_masks(score(prunable(model), "random", torch.Generator().manual_seed(3)), sparsity, scope)
    if scope == "local":
        for module, name in layers(oracle):
            torch_prune.random_unstructured(module, name, amount=sparsity)
    else:
        torch_prune.global_unstructured(layers(oracle), pruning_method=torch_prune.RandomUnstructured, amount=sparsity)
    stay = [int(mask.sum()) for mask in keep.values()]
    theirs = [int(module.weight_mask.sum()) for module, _ in layers(oracle)]
    assert sum(stay) == sum(theirs)
    assert scope == "global" or stay == theirs


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
def test_the_count_is_exact_where_all_scores_are_equal(scope: str, count: int) -> None:
    keep = keep_masks({"w": torch.ones(5)}, count / 5, scope)["w"]
    assert keep.tolist() == [False] * count + [True] * (5 - count)  # by their place


def test_masks_follow_a_permutation() -> None:
    weight = torch.randn(7, 9, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(63, generator=torch.Generator().manual_seed(2))
    keep = keep_masks(score({"w": weight}, "l1"), 0.3, "local")["w"].flatten()
    shuffled = keep_masks(score({"w": weight.flatten()[order]}, "l1"), 0.3, "local")["w"]
    assert torch.equal(shuffled, keep[order])


def test_zeros_go_before_anything_else() -> None:
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0, 3.0, 4.0])
    for seed in range(20):
        keep = keep_masks(score({"w": weight}, "random", torch.Generator().manual_seed(seed)), 0.5, "local")["w"]
        assert int((weight * keep).count_nonzero()) == 3


def test_random_numbers_come_from_the_generator_alone() -> None:
    weights = {"a": torch.randn(50), "b": torch.randn(50)}
    state = torch.get_rng_state()
    first, second, other = (score(weights, "random", torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first["a"], second["a"])
    assert not torch.equal(first["a"], other["a"])
    assert not torch.equal(first["a"], first["b"])


def test_only_weights_of_convolutions_and_linear_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 2))
    assert list(prunable(model)) == ["0.weight", "4.weight"]


def test_shared_weights_are_ranked_once() -> None:
    first = nn.Linear(4, 4)
    second = nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    assert list(prunable(model)) == ["0.weight"]
    sparse = masked(model, keep_masks(score(prunable(model), "l1"), 0.5, "global"))
    assert sparse[0].weight is sparse[1].weight
    assert int(sparse[1].weight.count_nonzero()) == 8


def test_the_network_itself_stays() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    sparse = masked(model, keep_masks(score(prunable(model), "l1"), 0.5, "global"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    rest = set(before) - set(prunable(model))
    assert all(torch.equal(sparse.state_dict()[name], before[name]) for name in rest)


def test_other_layouts_are_ranked_alike() -> None:
    weight = torch.randn(8, 4, 3, 3)
    last = weight.to(memory_format=torch.channels_last)
    for scope in ("local", "global"):
        a, b = (keep_masks(score({"w": each}, "l1"), 0.4, scope)["w"] for each in (weight, last))
        assert torch.equal(a, b)
    apply_({"w": last}, {"w": a})
    assert int(last.count_nonzero()) == weight.numel() - round(0.4 * weight.numel())


def test_the_edges() -> None:
    assert keep_masks({}, 0.5, "global") == {}
    assert not keep_masks({"w": torch.ones(3)}, 1.0, "local")["w"].any()
    with pytest.raises(ValueError, match=r"sparsity = 1\.5: a share of the weights lies in \[0, 1\]"):
        keep_masks({"w": torch.ones(3)}, 1.5, "local")
    with pytest.raises(ValueError, match="w holds NaN or infinity: its weights cannot be ranked"):
        score({"w": torch.tensor([1.0, torch.nan])}, "l1")


def test_blocks_go_whole_by_their_mean() -> None:
    """Blocks of 2 x 2: the last column's are ragged, and means do not make them smaller."""
    scores = {"w": torch.tensor([[4.0, 4.0, 3.0], [4.0, 4.0, 3.0], [1.0, 2.0, 9.0], [2.0, 1.0, 9.0]])}
    found = keep_masks(scores, 0.5, "local", (2, 2))["w"]
    assert found.tolist() == [[True, True, False]] * 2 + [[False, False, True]] * 2
    kernels = keep_masks({"w": torch.tensor([[[[1.0, 9.0]], [[4.0, 4.0]], [[6.0, 5.0]]]])}, 2 / 3, "local", (1, 1))["w"]
    assert kernels.flatten(2).tolist() == [[[False, False], [False, False], [True, True]]]


@pytest.mark.parametrize("tile", [(1, -1), (4, 4), (3, 5), (-1, 1)])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_as_many_blocks_go_as_are_within_the_share(tile: tuple[int, int], scope: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {n: torch.rand(s, generator=generator) for n, s in (("a", (12, 10, 3, 3)), ("b", (7, 12)))}
    keep = keep_masks(scores, 0.6, scope, tile)  # type: ignore[arg-type]
    for name, mask in keep.items():
        whole = block_sums(mask.to(torch.int64), tile) == block_sizes(tuple(mask.shape), tile)
        assert bool((whole | (block_sums(mask.to(torch.int64), tile) == 0)).all()), name
    groups = [list(keep)] if scope == "global" else [[name] for name in keep]
    for names in groups:
        count = sum(keep[name].numel() for name in names)
        gone = sum(int((~keep[name]).sum()) for name in names)
        largest = max(int(block_sizes(tuple(keep[name].shape), tile).max()) for name in names)
        assert round(0.6 * count) - largest < gone <= round(0.6 * count)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (1, 8)])
def test_n_of_m_against_a_slow_loop(n: int, m: int) -> None:
    scores = torch.rand(3, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    scores[0, :8] = 0.5  # ties
    found = keep_n_of_m({"w": scores}, n, m)["w"]
    assert bool((found.reshape(3, 16 // m, m, 9).sum(2) == n).all())
    for out in range(3):
        for first in range(0, 16, m):
            for y in range(3):
                for x in range(3):
                    group = scores[out, first : first + m, y, x]
                    best = sorted(range(m), key=lambda place: (-float(group[place]), place))[:n]
                    assert found[out, first : first + m, y, x].nonzero().flatten().tolist() == sorted(best)


def test_blocks_and_patterns_that_do_not_fit_name_the_layer() -> None:
    scores = {"stem.weight": torch.rand(8, 3, 3, 3)}
    with pytest.raises(ValueError, match=r"2:4 does not divide the 3 inputs of stem\.weight; exclude it"):
        keep_n_of_m(scores, 2, 4)
    with pytest.raises(ValueError, match=r"tile \(1, 16\) is larger than stem\.weight \[8, 3, 3, 3\]"):
        keep_masks(scores, 0.5, "local", (1, 16))
