"""SNIP, GraSP and SynFlow against slow transcriptions of their formulas, and what each promises."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from edgewise.models import build
from edgewise.sparse import grasp, keep_masks, prunable, snip, synflow
from train.tiny import tensors, tiny_net


def two_layers() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def batches(model: nn.Module, count: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(5, 3, generator=generator, dtype=torch.float64), torch.randint(2, (5,), generator=generator))
        for _ in range(count)
    ]


def test_snip_is_the_change_of_the_loss_to_first_order() -> None:
    """Each weight is scaled by a little, and the loss looked at: its derivative by the connection at 1."""
    model = two_layers()
    given = batches(model)

    def loss() -> float:
        with torch.no_grad():
            return sum(float(cross_entropy(model(x), y)) for x, y in given)

    found, step = snip(model, cross_entropy, given), 1e-5
    for name, weight in prunable(model).items():
        for place in range(weight.numel()):
            value = float(weight.data.view(-1)[place])
            weight.data.view(-1)[place] = value * (1 + step)
            above = loss()
            weight.data.view(-1)[place] = value * (1 - step)
            below = loss()
            weight.data.view(-1)[place] = value
            assert found[name].view(-1)[place].item() == pytest.approx(abs(above - below) / (2 * step), abs=1e-8)


def test_grasp_is_weight_times_hessian_times_gradient() -> None:
    """The Hessian of the weights of both layers, whole, by torch.autograd.functional."""
    model = two_layers()
    given = batches(model)
    names = list(prunable(model))
    parts = {name: parameter.detach() for name, parameter in model.named_parameters()}
    sizes = [parts[name].numel() for name in names]

    def loss(flat: Tensor) -> Tensor:
        weights = {name: part.view_as(parts[name]) for name, part in zip(names, flat.split(sizes), strict=True)}
        outputs = [(torch.func.functional_call(model, {**parts, **weights}, (x,)) / 200, y) for x, y in given]
        return torch.stack([cross_entropy(out, y) for out, y in outputs]).sum()

    flat = torch.cat([parts[name].flatten() for name in names])
    gradient = torch.autograd.functional.jacobian(loss, flat)
    expected = flat * (torch.autograd.functional.hessian(loss, flat) @ gradient)
    found = grasp(model, cross_entropy, given)
    torch.testing.assert_close(torch.cat([found[name].flatten() for name in names]), expected, rtol=1e-6, atol=0)


def test_synflows_scores_are_conserved() -> None:
    """What flows into a layer flows out of it: every layer of a plain network has the same total."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5))
    scores = synflow(model, (3, 8, 8), 0.01)
    totals = [float(found[found.isfinite()].sum()) for found in scores.values()]
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-9)


def test_synflow_empties_no_layer_where_magnitude_and_snip_do() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build("vgg16_bn", classes=10, size=32, width=0.25)
    sparsity = 0.998
    keep = keep_masks(synflow(model, (3, 32, 32), sparsity), sparsity, "global")
    assert all(bool(mask.any()) for mask in keep.values())
    count = sum(mask.numel() for mask in keep.values())
    assert sum(int((~mask).sum()) for mask in keep.values()) == round(sparsity * count)
    noise = [(torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(2)), torch.arange(16) % 10)]
    other = keep_masks(snip(model, cross_entropy, noise), sparsity, "global")
    assert not all(bool(mask.any()) for mask in other.values())


@pytest.mark.parametrize("tile", [None, (1, -1)])
def test_synflow_empties_no_layer_by_blocks_or_where_some_are_left_alone(tile: tuple[int, int] | None) -> None:
    """What went on the way ranks as nothing: neither its block nor the whole share goes by places then."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.ReLU(), nn.Conv2d(16, 40, 3, bias=False), nn.ReLU(), nn.Conv2d(40, 8, 2)
    )
    net = nn.Sequential(*net, nn.Flatten(), nn.Linear(8 * 3 * 3, 10))
    names = {f"{place}.weight" for place in (0, 2, 4, 6)}
    for exclude in (set(), {"0.weight"}):
        scores = synflow(net, (3, 8, 8), 0.6, "global", tile, exclude)
        keep = keep_masks({n: s for n, s in scores.items() if n not in exclude}, 0.6, "global", tile)
        kept = {name: float(mask.float().mean()) for name, mask in keep.items()}
        assert kept.keys() == names - exclude
        assert all(share > 0 for share in kept.values()), kept
        assert all(bool(scores[name].isfinite().all()) for name in exclude)
        gone = {name: scores[name] == -torch.inf for name in keep}
        assert all(not bool((gone[name] & keep[name]).any()) for name in keep)


@pytest.mark.parametrize("criterion", ["snip", "grasp", "synflow"])
def test_networks_are_left_as_they_are_and_scores_repeat(criterion: str) -> None:
    model = tiny_net().train()  # it has BatchNorm and dropout
    before = tensors(model)
    generator = torch.Generator().manual_seed(3)
    given = [(torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8) % 4)]

    def scores() -> dict[str, Tensor]:
        if criterion == "synflow":
            return synflow(model, (3, 8, 8), 0.5)
        return {"snip": snip, "grasp": grasp}[criterion](model, cross_entropy, given)

    one, two = scores(), scores()
    assert one.keys() == prunable(model).keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(model).items())
    assert model.training
