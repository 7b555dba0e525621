"""Net-Trim against magnitude pruning with least squares, at equal non-zeros in each layer; goals: below it on every
layer, and no more than 60 s on two cores.

A fully connected network, 784-300-1000-300-10 as in the Net-Trim paper, is trained on the embedded Fashion-MNIST (Adam,
dropout). Some of its training images, without labels, are then all that is used: every layer is sparsified, and the
same number of weights is kept by magnitude and fitted by the same least squares. The errors, of a layer's outputs after
its ReLU relative to their norm, are given on the images that were used and on the test images, with the inputs that the
layer has in the original network; the accuracies are on the test images.

Usage: python benchmarks/net_trim.py [--gamma 0.1 0.2] [--form log_sum] [--scheme parallel] [--images 1000]
    [--rounds 4] [--iterations 2000] [--epochs 10] [--threads 2] [--seed 0]
The last line of stdout is JSON.
"""

import argparse
import copy
import itertools
import json
import os
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.data import fashion
from edgewise.sparse import keep_masks, refit, sparsify_layers
from edgewise.sparse.layerwise import RIDGE, SCHEMES
from edgewise.sparse.nettrim import FORMS, POSITIVE
from train_loop import processor

WIDTHS = (784, 300, 1000, 300, 10)
BATCH, LR, DROPOUT = 100, 1e-3, 0.5


def build() -> nn.Sequential:
    modules: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(WIDTHS):
        modules += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(DROPOUT)]
    return nn.Sequential(*modules[:-2])


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), LR)
    for _ in range(epochs):
        for index in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
    model.eval()


@torch.no_grad()
def layer_inputs(model: nn.Sequential, images: Tensor) -> dict[str, Tensor]:
    """Return the inputs ``[P, N]`` of each linear layer."""
    found, x = {}, images
    for name, module in model.named_children():
        if isinstance(module, nn.Linear):
            found[name] = x
        x = module(x)
    return found


def outputs(layer: nn.Linear, x: Tensor, last: bool) -> Tensor:
    out = layer(x).double()
    return out if last else out.clamp(min=0)


@torch.no_grad()
def magnitude(model: nn.Sequential, inputs: dict[str, Tensor], kept: dict[str, int]) -> nn.Sequential:
    """Keep so many weights of each layer by magnitude, and fit them."""
    network = copy.deepcopy(model)
    for name, x in inputs.items():
        layer = network.get_submodule(name)
        weight, last = layer.weight, name == list(inputs)[-1]
        y = outputs(layer, x, last)
        mask = keep_masks({name: weight.abs()}, 1 - kept[name] / weight.numel(), "local")[name]
        omega = torch.ones_like(y, dtype=torch.bool) if last else y > POSITIVE
        fitted = refit(x, y, (weight * mask).T, layer.bias, omega=omega, ridge=RIDGE)
        layer.weight.copy_(fitted.weights.T)
        layer.bias.copy_(fitted.bias)
    return network


@torch.no_grad()
def errors(model: nn.Sequential, network: nn.Sequential, images: Tensor) -> dict[str, float]:
    """Return each layer's relative error on the inputs that it has in the original network."""
    found, inputs = {}, layer_inputs(model, images)
    for name, x in inputs.items():
        last = name == list(inputs)[-1]
        y = outputs(model.get_submodule(name), x, last)
        found[name] = float((outputs(network.get_submodule(name), x, last) - y).norm() / y.norm())
    return found


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((model(images).argmax(1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gamma", type=float, nargs="+", default=[0.1])
    parser.add_argument("--form", choices=FORMS, default="convex")
    parser.add_argument("--scheme", choices=SCHEMES, default="parallel")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    data = fashion.read()
    (learned, labels), (test, truth) = (
        ((split.images / 255 - fashion.MEAN[0]) / fashion.STD[0], split.labels) for split in (data.train, data.test)
    )
    model = build()
    train(model, learned, labels, given.epochs)
    images = learned[torch.randperm(len(learned))[: given.images]]
    print(f"{processor()}; {given.threads} threads; torch {torch.__version__}; load {os.getloadavg()[0]:.1f}")
    print(f"{'-'.join(map(str, WIDTHS))}, Fashion-MNIST, {given.images} images, {given.form}, {given.scheme}")
    results = []
    for gamma in given.gamma:
        began, cpu_began = time.perf_counter(), time.process_time()
        network, rows = sparsify_layers(
            model,
            images,
            gamma=gamma,
            form=given.form,
            scheme=given.scheme,
            rounds=given.rounds,
            iterations=given.iterations,
        )
        took, cpu = time.perf_counter() - began, time.process_time() - cpu_began
        baseline = magnitude(model, layer_inputs(model, images), {row.layer: row.nonzero for row in rows})
        held = [errors(model, each, test) for each in (network, baseline)]
        accuracies = [accuracy(each, test, truth) for each in (model, network, baseline)]
        print(f"\ngamma {gamma}: {took:.1f} s for all layers, {cpu:.1f} s of processor time")
        print("layer      kept           its  residual/eps  refitted   error  magnitude  test: error  magnitude")
        for row in rows:
            print(
                f"{row.layer:<6}{row.nonzero:>7} {row.nonzero / row.weights:7.2%}{row.iterations:>10}"
                f"{row.residual / row.epsilon:>14.4f}{row.refitted:>6}/{row.outputs:<4}{row.error:>7.4f}"
                f"{row.baseline_error:>11.4f}{held[0][row.layer]:>13.4f}{held[1][row.layer]:>11.4f}"
                f"{'' if row.below_baseline else '  NOT BELOW'}"
            )
        print("test accuracy: dense {:.2%}, sparse {:.2%}, magnitude {:.2%}".format(*accuracies))
        results.append(
            {
                "gamma": gamma,
                "seconds": took,
                "processor_seconds": cpu,
                "dense": accuracies[0],
                "accuracy": accuracies[1],
                "magnitude_accuracy": accuracies[2],
                "below_everywhere": all(row.below_baseline for row in rows),
                "layers": [
                    {
                        "layer": row.layer,
                        "weights": row.weights,
                        "nonzero": row.nonzero,
                        "iterations": row.iterations,
                        "epsilon": row.epsilon,
                        "residual": row.residual,
                        "error": row.error,
                        "magnitude_error": row.baseline_error,
                        "test_error": held[0][row.layer],
                        "magnitude_test_error": held[1][row.layer],
                    }
                    for row in rows
                ],
            }
        )
    print(json.dumps({"benchmark": "net_trim", **vars(given), "machine": processor(), "results": results}))


if __name__ == "__main__":
    main()
