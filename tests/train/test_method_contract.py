"""The contract of every training method: what all hold to, and what each one promises of the network it leaves."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise.distill import Distill, Distillation
from edgewise.prune import DhspgPruning, HessoPruning
from edgewise.recipe import METHODS
from edgewise.sparse import keep_masks, masked, prunable, score
from edgewise.steps import OF_WEIGHTS
from edgewise.train import TrainConfig, TrainingMethod, evaluate, fit
from train.tiny import TASK, same, tensors, tiny_net, tiny_split

SPLIT = tiny_split(160)
CONFIG = TrainConfig(epochs=4, batch=32, lr=0.05, augment=())
EXAMPLE = torch.zeros(1, 3, 8, 8)
STEPS = 20


def weights(model: nn.Module) -> list[Tensor]:
    return [weight.detach() for weight in prunable(model).values()]


def zeros(share: float) -> Callable[[nn.Module], bool]:
    def hold(model: nn.Module) -> bool:
        every = torch.cat([weight.flatten() for weight in weights(model)])
        return int((every == 0).sum()) == round(share * len(every))

    return hold


def some_zeros(model: nn.Module) -> bool:
    return any(bool((weight == 0).any()) for weight in weights(model))


def zero_channels(model: nn.Module) -> bool:
    """A channel that is gone is gone with its normalisation."""
    assert isinstance(model, nn.Sequential)
    silent = (model[1].weight == 0) & (model[1].bias == 0)  # type: ignore[operator]
    return bool(silent.any()) and bool((model[0].weight[silent] == 0).all())  # type: ignore[index]


def ternary(model: nn.Module) -> bool:
    return all(len(weight.abs().unique()) <= 2 for weight in weights(model)[1:])


def few_values(model: nn.Module) -> bool:
    return all(len(weight.unique()) <= 8 for weight in weights(model))


def powers(model: nn.Module) -> bool:
    left = torch.cat([weight[weight != 0].flatten() for weight in weights(model)])
    return bool((left.abs().log2() == left.abs().log2().round()).all())


# By kind: settings, and what holds of the network afterwards. Behind a comma: which variant of the kind.
CONTRACT: dict[str, tuple[dict[str, Any], Callable[[nn.Module], bool]]] = {
    "distill": ({}, lambda model: True),
    "distill, features": (
        {"hint": 1.0, "attention": 1.0, "similarity": 1.0, "relational": 1.0, "taps": ("2", "5")},
        lambda model: True,
    ),
    "distill, cached": ({"alpha": 0.1, "loss": "dkd", "hint": 1.0, "taps": ("5",), "cache": True}, lambda model: True),
    "distill, two teachers": ({"hint": 1.0, "taps": ("2",), "teacher_taps": ("5",)}, lambda model: True),
    "hesso": ({"sparsity": 0.5, "start": 0.1, "duration": 0.5, "periods": 2}, zero_channels),
    "dhspg": ({"sparsity": 0.5, "start": 0.1, "penalty": 5.0}, lambda model: True),
    "keep_zeros": ({}, zeros(0.5)),
    "gradual": ({"sparsity": 0.7, "events": 4}, zeros(0.7)),
    "flipout": ({"sparsity": 0.75, "events": 2}, zeros(0.75)),
    "hoyer": ({"strength": 1e-2, "threshold": 1e-2}, some_zeros),
    "ternary": ({"float_layers": "first"}, ternary),
    "pe_lasso": ({"tile": (1, 1), "strength": 0.1, "sparsity": 0.3, "spare": "first"}, some_zeros),
    "share_weights": ({"bits": 3}, few_values),
    "powers_of_two": ({"bits": 4}, powers),
}
SPARSE = ("keep_zeros", "gradual", "flipout", "hoyer", "pe_lasso")


def network(*kinds: str) -> nn.Module:
    model = tiny_net()
    return masked(model, keep_masks(score(prunable(model), "l1"), 0.5, "global")) if "keep_zeros" in kinds else model


def method(kind: str) -> TrainingMethod:
    config = METHODS[kind.partition(",")[0]](**CONTRACT[kind][0])
    if isinstance(config, Distill):
        teachers = [tiny_net(seed=5), tiny_net(seed=6)] if "two" in kind else [tiny_net(seed=5)]
        return Distillation(teachers, config, TASK, SPLIT)
    if kind in ("hesso", "dhspg"):
        return {"hesso": HessoPruning, "dhspg": DhspgPruning}[kind](EXAMPLE, config)
    return OF_WEIGHTS[METHODS[kind]](config)


def trained(*kinds: str, config: TrainConfig = CONFIG, **rest: Any) -> nn.Module:
    return fit(network(*kinds), TASK, SPLIT, config, methods=[method(kind) for kind in kinds], **rest)


def test_every_method_of_a_recipe_has_a_row() -> None:
    elsewhere = {"distill_detector", "data_free"}  # tests/distill: they need other images, or none
    assert {kind.partition(",")[0] for kind in CONTRACT} | elsewhere == set(METHODS)


@pytest.mark.parametrize("kind", CONTRACT)
def test_the_given_network_and_the_global_random_state_stay_and_the_new_one_is_plain(kind: str) -> None:
    model = network(kind)
    before, random = tensors(model), torch.get_rng_state()
    made = fit(model, TASK, SPLIT, CONFIG, methods=[method(kind)])
    assert same(model, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert made.state_dict().keys() == before.keys()  # nothing behind the weights any more
    assert not same(made, before)


@pytest.mark.parametrize("kind", CONTRACT)
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_it_keeps_its_promise_and_the_same_seed_gives_the_same_bytes(kind: str, ema: float) -> None:
    config = replace(CONFIG, ema=ema)
    made = trained(kind, config=config)
    assert CONTRACT[kind][1](made)
    assert same(made, trained(kind, config=config))
    assert evaluate(made, TASK, tiny_split(100, seed=9)) > 0.4  # of four classes


@pytest.mark.parametrize("kind", SPARSE)
def test_zeros_have_no_sign(kind: str) -> None:
    """-0 is another number to whoever stores bits: it would take as many as a weight."""
    every = torch.cat([weight.flatten() for weight in weights(trained(kind))])
    assert not bool(torch.signbit(every[every == 0]).any())


@pytest.mark.parametrize("kind", CONTRACT)
def test_it_can_be_started_again_on_another_network(kind: str) -> None:
    used = method(kind)
    fit(network(kind), TASK, SPLIT, CONFIG, methods=[used])
    assert same(fit(network(kind), TASK, SPLIT, CONFIG, methods=[used]), trained(kind))


@pytest.mark.parametrize("kind", CONTRACT)
@pytest.mark.parametrize("last", [6, 13, 18])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(kind: str, last: int, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        assert total in (STEPS, CONFIG.epochs)
        if what == "train" and done == last:
            raise StoppedError

    path = tmp_path / "checkpoint"
    with pytest.raises(StoppedError):
        trained(kind, checkpoint=path, progress=stop)
    assert same(trained(kind, checkpoint=path), trained(kind))


@pytest.mark.parametrize("values", ["ternary", "powers_of_two"])
@pytest.mark.parametrize("kind", SPARSE)
def test_zeros_and_few_values_in_one_training_with_a_teacher(kind: str, values: str) -> None:
    made = trained("distill", kind, values)
    assert CONTRACT[values][1](made)
    if kind != "pe_lasso" or values == "ternary":
        least = {"keep_zeros": 0.5, "gradual": 0.7, "flipout": 0.75}.get(kind, 0.01)
        every = torch.cat([weight.flatten() for weight in weights(made)])
        assert float((every == 0).float().mean()) >= least - 1e-3
