"""Values that weights share: k-means against a slow loop, INQ's powers of two, and gradients summed by hand."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewise.errors import RecipeError
from edgewise.export.huffman import huffman_bits
from edgewise.export.packed import smallest
from edgewise.quantize.codebook import (
    ShareWeights,
    WeightsShared,
    kmeans,
    powers_of_two,
    share,
    shared_weights,
    ternary,
)
from edgewise.quantize.inq import Incremental, PowersOfTwo
from edgewise.sparse import KeepZeros, ZerosKept, keep_masks, masked, prunable, score
from edgewise.train import TrainConfig, evaluate, fit
from edgewise.train.method import TrainingMethod
from train.tiny import TASK, same, tiny_net, tiny_split

SPLIT = tiny_split(200)
CONFIG = TrainConfig(epochs=4, batch=32, lr=0.02, augment=())


def drawn(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def slow_lloyd(weights: list[float], count: int, zero: bool) -> tuple[list[float], list[int]]:
    """Lloyd's algorithm as a textbook has it, weight by weight."""
    low, high = min(weights), max(weights)
    centroids = [low + (high - low) * place / (count - 1) for place in range(count)]
    held = min(range(count), key=lambda place: abs(centroids[place]))
    codes: list[int] = []
    while True:
        if zero:
            centroids[held] = 0.0
        before, codes = codes, []
        for weight in weights:
            codes.append(min(range(count), key=lambda place: (abs(weight - centroids[place]), place)))
        if codes == before:
            return centroids, codes
        for place in range(count):
            members = [weight for weight, code in zip(weights, codes, strict=True) if code == place]
            if members:
                centroids[place] = math.fsum(members) / len(members)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 5])
def test_kmeans_is_lloyds_algorithm(bits: int, zero: bool) -> None:
    weight = drawn(700, seed=bits).double() + 0.3
    weight[::3] = 0
    centroids, codes = slow_lloyd(weight.tolist(), 2**bits, zero)
    shared = kmeans(weight, bits, zero)
    expected = torch.tensor([centroids[code] for code in codes], dtype=torch.float64)
    torch.testing.assert_close(shared.weight, expected, rtol=1e-12, atol=1e-14)
    assert len(shared.values) == len(set(codes))
    assert bool((shared.values[1:] > shared.values[:-1]).all())


@pytest.mark.filterwarnings("ignore")
def test_kmeans_is_scikit_learns() -> None:
    """On weights that leave no centroid empty: scikit-learn moves such a one elsewhere, Deep Compression does not."""
    cluster = pytest.importorskip("sklearn.cluster")
    weight = torch.rand(3000, generator=torch.Generator().manual_seed(0)).double().square() - 0.2
    start = np.linspace(weight.min(), weight.max(), 16)[:, None]
    found = cluster.KMeans(16, init=start, n_init=1, max_iter=10_000, tol=0, algorithm="lloyd").fit(weight[:, None])
    expected = found.cluster_centers_[found.labels_, 0]
    np.testing.assert_allclose(kmeans(weight, 4).weight.numpy(), expected, rtol=1e-9)


def test_kmeans_by_hand() -> None:
    """From 0, 4, 8, 12: 1 and 2 go to 0 (2 lies in the middle); then their means; nothing moves any more."""
    shared = kmeans(torch.tensor([[12.0, 0.0, 1.0], [2.0, 5.0, 6.0]]), 2)
    assert shared.values.tolist() == [1.0, 5.5, 12.0]
    assert shared.codes.tolist() == [[2, 0, 0], [0, 1, 1]]
    assert shared.counts.tolist() == [3, 2, 1]
    assert (shared.fixed_bits, shared.huffman_bits) == (12, 9)


def test_it_is_the_same_for_any_order_and_memory_layout() -> None:
    weight = drawn(240).reshape(4, 5, 4, 3)
    order = torch.randperm(240, generator=torch.Generator().manual_seed(1))
    first, second = kmeans(weight, 3), kmeans(weight.flatten()[order], 3)
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.codes.flatten()[order], second.codes)
    assert torch.equal(first.codes, kmeans(weight.to(memory_format=torch.channels_last), 3).codes)


def test_few_different_weights_are_kept_exactly() -> None:
    weight = torch.tensor([0.1, -0.0, 0.1, 0.7, 0.0])
    shared = kmeans(weight, 2)
    assert torch.equal(shared.weight, weight)
    assert len(shared.values) == 3
    assert torch.equal(kmeans(torch.full((5,), 0.3), 8).weight, torch.full((5,), 0.3))


def test_zeros_stay_zero_where_a_centroid_is_held_there() -> None:
    weight = torch.cat([drawn(500) * 0.1 + 1, torch.zeros(100), drawn(500, 1) * 0.01 - 0.02])
    assert bool((kmeans(weight, 2, zero=True).weight[500:600] == 0).all())
    assert not bool((kmeans(weight, 2).weight[500:600] == 0).any())  # what it is for


def test_more_bits_err_less() -> None:
    weight = drawn(4000)
    errors = [float((kmeans(weight, bits).weight - weight).square().mean()) for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 < errors[0]


def test_ternary_by_hand() -> None:
    """The mean magnitude is 1, the threshold 0.7: 0.7 itself is 0, the others' mean is 2."""
    weight = torch.tensor([[0.7, -1.0, 3.0], [-0.3, 0.5, 0.5]])
    assert ternary(weight).weight.tolist() == [[0.0, -2.0, 2.0], [0.0, 0.0, 0.0]]
    assert ternary(torch.zeros(3)).weight.tolist() == [0.0, 0.0, 0.0]


def slow_powers(weight: float, largest: float, bits: int) -> float:
    """Eq. (4) of the paper over the sorted values, and eq. (2) and (3) for the ends."""
    highest = math.floor(math.log2(4 * largest / 3))
    lowest = highest + 1 - 2 ** (bits - 1) // 2
    values = [0.0, *(2.0**exponent for exponent in range(lowest, highest + 1))]
    for low, high in pairwise(values):
        if (low + high) / 2 <= abs(weight) < 3 * high / 2:
            found = high
    return math.copysign(found, weight) if abs(weight) >= values[1] / 2 else 0.0


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_powers_of_two_are_the_papers(bits: int) -> None:
    weight = torch.cat([drawn(500) * 0.2, torch.tensor([0.0, 0.75, -0.75, 0.375, 0.1875])]).double()
    largest = float(weight.abs().max())
    expected = [slow_powers(each, largest, bits) for each in weight.tolist()]
    assert powers_of_two(weight, bits).weight.tolist() == expected
    assert len(set(expected)) <= 2 ** (bits - 1) + 1


def test_a_weight_that_outgrew_the_first_ones_gets_the_largest_power() -> None:
    assert powers_of_two(torch.tensor([8.0, 1.0]), 3, largest=1.0).weight.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("counts", [[5], [1, 1], [9, 1, 1, 0, 3], [2**place for place in range(20)], list(range(256))])
def test_huffmans_codes_take_less_than_a_bit_more_than_the_entropy(counts: list[int]) -> None:
    total = sum(counts)
    entropy = -sum(count * math.log2(count / total) for count in counts if count)
    assert entropy <= huffman_bits(counts) < entropy + total + (len(counts) == 1)


@pytest.mark.parametrize("make", [lambda w: kmeans(w, 4), ternary, lambda w: powers_of_two(w, 4)])
def test_what_no_codebook_can_be_made_of_is_refused(make: object) -> None:
    for weight in (torch.empty(0), torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.inf])):
        with pytest.raises(ValueError, match="finite weights, at least one"):
            make(weight)  # type: ignore[operator]


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_are_2_to_8(bits: int) -> None:
    for make in (lambda: kmeans(torch.ones(3), bits), lambda: ShareWeights(bits=bits), lambda: PowersOfTwo(bits=bits)):
        with pytest.raises(ValueError, match=rf"bits = {bits}: 2 to 8"):
            make()


@pytest.mark.parametrize("portions", [(), (0.5,), (0.5, 0.5, 1.0), (0.0, 1.0), (0.5, 1.2)])
def test_portions_rise_to_1(portions: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="shares of the weights that rise"):
        PowersOfTwo(portions=portions)


# -- networks -------------------------------------------------------------------------------------------------------


def different(model: nn.Module) -> dict[str, int]:
    return {name: len(weight.detach().unique()) for name, weight in prunable(model).items()}


def test_a_network_is_copied_and_layers_are_chosen_by_name() -> None:
    model = tiny_net()
    before = {name: found.clone() for name, found in model.state_dict().items()}
    shared = share(model, ShareWeights(bits=2, layers=("0", "8")))
    assert same(before, model)
    counts = different(shared)
    assert counts["0.weight"] <= 4
    assert counts["8.weight"] <= 4
    assert torch.equal(shared[3].weight, model[3].weight)
    assert list(shared_weights(model, ShareWeights())) == ["0.weight", "3.weight", "8.weight"]
    with pytest.raises(RecipeError, match=r'layers: "1" is no convolution or linear layer'):
        share(model, ShareWeights(layers=("1",)))
    with pytest.raises(RecipeError, match="no convolution or linear layer whose weights"):
        share(nn.ReLU(), ShareWeights())
    with torch.no_grad():
        model[3].weight[0] = math.nan
    with pytest.raises(ValueError, match=r"3\.weight: a codebook is made of finite weights"):
        share(model, ShareWeights())


def one_layer(values: list[float]) -> nn.Linear:
    layer = nn.Linear(len(values), 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([values]))
    return layer


@pytest.mark.parametrize(
    ("changes", "values", "expected"),
    [
        # Codes 0, 0, 1, 2, 2, 2: the gradients 1, 2, 4, 8, 16, 32 make 3, 4 and 56.
        ({}, [-1.0, -1.0, 0.0, 1.0, 1.0, 1.0], [3.0, 3.0, 4.0, 56.0, 56.0, 56.0]),
        ({"gradient": "mean"}, [-1.0, -1.0, 0.0, 1.0, 1.0, 1.0], [1.5, 1.5, 4.0, 56 / 3, 56 / 3, 56 / 3]),
        ({"zero": True}, [-1.0, -1.0, 0.0, 1.0, 1.0, 1.0], [3.0, 3.0, 0.0, 56.0, 56.0, 56.0]),
        # One magnitude for both signs: 8 + 16 + 32 - 1 - 2 = 53.
        ({"values": "ternary"}, [-1.0, -1.0, 0.0, 1.0, 1.0, 1.0], [-53.0, -53.0, 0.0, 53.0, 53.0, 53.0]),
        (
            {"values": "ternary", "gradient": "mean"},
            [-1.0, -1.0, 0.0, 1.0, 1.0, 1.0],
            [-10.6, -10.6, 0.0, 10.6, 10.6, 10.6],
        ),
    ],
    ids=["sum", "mean", "zero", "ternary", "ternary-mean"],
)
@torch.no_grad()
def test_gradients_are_summed(changes: dict[str, object], values: list[float], expected: list[float]) -> None:
    layer = one_layer(values)
    method = WeightsShared(replace(ShareWeights(bits=2), **changes))
    method.start(layer, CONFIG, 1)
    layer.weight.grad = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]])
    method.gradients(layer)
    torch.testing.assert_close(layer.weight.grad, torch.tensor([expected]))


def test_the_summed_gradient_is_that_of_the_values() -> None:
    """The same network written with its centroids as the parameter, differentiated by autograd."""
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last), torch.randn(2, 3, 8, 8)
    method = WeightsShared(ShareWeights(bits=3))
    shared = kmeans(layer.weight, 3)
    method.start(layer, CONFIG, 1)
    values = shared.values.clone().requires_grad_()
    nn.functional.conv2d(x, values[shared.codes.long()], layer.bias).square().sum().backward()
    layer(x).square().sum().backward()
    with torch.no_grad():
        method.gradients(layer)
    torch.testing.assert_close(layer.weight.grad, values.grad[shared.codes.long()], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_weights_that_came_apart_get_their_mean() -> None:
    layer = one_layer([-1.0, -1.0, 0.0, 1.0, 1.0, 1.0])
    method = WeightsShared(ShareWeights(bits=2, values="ternary"))
    method.start(layer, CONFIG, 1)
    layer.weight.copy_(torch.tensor([[-1.0, -2.0, 5.0, 1.0, 3.0, 3.0]]))
    method.after_step(layer, 0, 0.1)
    assert layer.weight.tolist() == [[-2.0, -2.0, 0.0, 2.0, 2.0, 2.0]]


CASES = [
    pytest.param(lambda: WeightsShared(ShareWeights(bits=3, gradient="mean")), 8, id="kmeans"),
    pytest.param(lambda: WeightsShared(ShareWeights(values="ternary", bits=2, gradient="mean")), 3, id="ternary"),
    pytest.param(lambda: Incremental(PowersOfTwo(bits=4)), 9, id="powers"),
]


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9, "decay": "all"}, {"optimizer": "adamw", "lr": 0.01}])
@pytest.mark.parametrize(("method", "most"), CASES)
def test_a_trained_network_has_few_values_and_gains(method: object, most: int, changes: dict[str, object]) -> None:
    start = fit(tiny_net(), TASK, SPLIT, CONFIG)
    trained = fit(start, TASK, SPLIT, replace(CONFIG, **changes), methods=[method()])  # type: ignore[operator]
    assert max(different(trained).values()) <= most
    assert not same(trained, start)
    assert evaluate(trained, TASK, tiny_split(200, seed=9)) > 0.9
    for weight in prunable(trained).values():  # and its packed file is as small as that
        assert len(smallest(weight.detach()).stored) < weight.numel() * 4 / 8 + 4 * most + 16


def test_ternary_training_mends_what_three_values_cost() -> None:
    start = fit(tiny_net(), TASK, SPLIT, CONFIG)
    config = ShareWeights(values="ternary", bits=2, gradient="mean")
    unseen = tiny_split(400, seed=9)

    def loss(model: nn.Module) -> float:
        inputs, targets = TASK.batch(unseen, torch.arange(400), augment=False)
        with torch.no_grad():
            return TASK.loss(model.eval()(inputs), targets).item()

    rough = share(start, config)
    assert loss(fit(start, TASK, SPLIT, CONFIG, methods=[WeightsShared(config)])) < 0.8 * loss(rough)


def test_zeros_stay_zeros_while_values_are_trained() -> None:
    start = masked(tiny_net(), keep_masks(score(prunable(tiny_net()), "l1"), 0.7, "global"))
    methods = [ZerosKept(KeepZeros()), WeightsShared(ShareWeights(bits=4, zero=True, gradient="mean"))]
    trained = fit(start, TASK, SPLIT, CONFIG, methods=methods)
    for was, now in zip(prunable(start).values(), prunable(trained).values(), strict=True):
        assert bool((now[was == 0] == 0).all())
    assert max(different(trained).values()) <= 16


@torch.no_grad()
def test_incremental_fixes_the_largest_and_leaves_the_others_free() -> None:
    layer = one_layer([0.9, -0.2, 0.6, 0.1])
    method = Incremental(PowersOfTwo(bits=3, portions=(0.5, 1.0)))
    method.start(layer, replace(CONFIG, epochs=2), 1)
    torch.testing.assert_close(layer.weight, torch.tensor([[1.0, -0.2, 0.5, 0.1]]))
    layer.weight.grad = torch.ones(1, 4)
    method.gradients(layer)
    assert layer.weight.grad.tolist() == [[0.0, 1.0, 0.0, 1.0]]
    layer.weight.add_(torch.tensor([[0.3, -0.2, 0.3, 0.1]]))
    method.after_step(layer, 0, 0.1)
    torch.testing.assert_close(layer.weight, torch.tensor([[1.0, -0.4, 0.5, 0.2]]))
    method.after_epoch(layer, 0)
    torch.testing.assert_close(layer.weight, torch.tensor([[1.0, -0.5, 0.5, 0.0]]))
    with pytest.raises(RecipeError, match="1 epochs for 4 portions"):
        Incremental(PowersOfTwo()).start(layer, replace(CONFIG, epochs=1), 1)


class KilledError(Exception):
    """Somebody killed the training."""


class Killed(TrainingMethod):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        if step == self.epoch * (200 // 32):
            raise KilledError


class Neighbour(TrainingMethod):
    """Does nothing, in `Killed`'s place."""


Neighbour.__name__ = "Killed"


@pytest.mark.parametrize(("method", "most"), CASES)
def test_a_killed_training_goes_on_as_if_nothing_had_been(method: object, most: int, tmp_path: Path) -> None:
    checkpoint, start = tmp_path / "c.safetensors", tiny_net()
    whole = fit(start, TASK, SPLIT, CONFIG, methods=[method(), Neighbour()])  # type: ignore[operator]
    with pytest.raises(KilledError):
        fit(start, TASK, SPLIT, CONFIG, methods=[method(), Killed(2)], checkpoint=checkpoint)  # type: ignore[operator]
    resumed = fit(start, TASK, SPLIT, CONFIG, methods=[method(), Neighbour()], checkpoint=checkpoint)  # type: ignore[operator]
    assert same(resumed, whole)
