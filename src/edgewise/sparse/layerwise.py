"""A trained network made sparse layer by layer, from unlabelled images, without training.

Each layer is given the sparsest weights with which it still computes, on the images, what it computed: see
`edgewise.sparse.nettrim`. A convolution is a layer of patches, at positions of its output that are drawn; its groups
are solved together. A BatchNorm between a layer and its ReLU is part of the layer: it is the folded weights that are
solved for, and what is written back are the weights that fold to them, and the BatchNorm's bias.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgewise.errors import ModelError, UnknownName, nearest
from edgewise.graph.trace import evaluating
from edgewise.progress import Progress
from edgewise.sparse.follow import Followed, followed
from edgewise.sparse.masks import LAYERS
from edgewise.sparse.nettrim import FORMS, ITERATIONS, POSITIVE, Form, Refitted, refit, trim
from edgewise.train.forward import forward, home

Scheme = Literal["parallel", "cascade"]
Support = Literal["solved", "magnitude", "better"]
SCHEMES: tuple[Scheme, ...] = ("parallel", "cascade")

ROWS = 2048  # of a layer that are drawn, from all images together; one row for each image if there are more
BATCH = 64  # images that run at once
SPREAD = 1.1  # of the squared residual that a layer of the cascade may have, over that of the original weights
RIDGE = 1e-6  # of the least squares, see `sparsify_layers`


@dataclass(frozen=True)
class TrimmedLayer:
    """What became of a layer.

    Args:
        layer: its module's name.
        norm: of the BatchNorm that was folded into it, if one was.
        rectified: whether a ReLU follows; otherwise all its outputs had to be kept.
        rows: samples that it was solved on.
        weights: how many it has, biases not counted.
        nonzero: how many of them are not 0.
        gamma: what was asked, epsilon over the norm of the layer's outputs; for a layer of the cascade, what came out.
        epsilon: how far the outputs could be from the original's.
        residual: how far the solver's are, where they count; see `Trimmed`.
        violation: by how much the highest output exceeds its limit where they do not.
        iterations: of the solver.
        refitted: for how many of its outputs the least squares on the support are taken; else it is the solver's.
        outputs: how many it has.
        error: of the layer's outputs after its ReLU in the end, relative to their norm, on the same rows.
        baseline_error: the same of magnitude pruning with as many weights and the same least squares.
    """

    layer: str
    norm: str | None
    rectified: bool
    rows: int
    weights: int
    nonzero: int
    gamma: float
    epsilon: float
    residual: float
    violation: float
    iterations: int
    refitted: int
    outputs: int
    error: float
    baseline_error: float

    @property
    def below_baseline(self) -> bool:
        """Whether the error is below that of magnitude pruning: if not, the solver was not worth its time here."""
        return self.error < self.baseline_error


def sparsify_layers(
    model: nn.Module,
    images: Tensor,
    *,
    gamma: float | Mapping[str, float],
    scheme: Scheme = "parallel",
    form: Form = "convex",
    rounds: int = 4,
    support: Support = "solved",
    skip: Collection[str] = (),
    rows: int = ROWS,
    ridge: float = RIDGE,
    iterations: int = ITERATIONS,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[nn.Module, tuple[TrimmedLayer, ...]]:
    """Give each layer the sparsest weights that keep its outputs, within gamma, on some images.

    The least squares on the support have a small ridge towards the solver's weights: an output that is positive on
    fewer samples than it keeps weights is usual in a network, and there the weights stay where the solver had them as
    far as its samples say nothing. Without one (0) such an output is refused. The baseline has the same.

    Args:
        model: of one tensor in, one tensor out; left as it was.
        images: ``[n, ...]`` as the network takes them; some hundreds, unlabelled. More rows than a layer has inputs
            are better.
        gamma: epsilon over the norm of the layer's outputs; for each layer by name, where those not named stay as they
            are.
        scheme: "parallel": every layer on the inputs it has in the original network, by itself. "cascade": on those
            that the layers before it, sparse already, make; epsilon then is ``sqrt(1.1)`` times what the original
            weights deviate on them, and gamma says only how the layers start that have no sparse one before them.
        form: see `trim`; "rows" removes whole inputs, of a convolution channels (within their group).
        rounds: of "log_sum".
        support: "solved": the weights that the solver keeps. "magnitude": as many of each layer's largest, followed by
            the same least squares, the baseline. "better": of the two the one with the lower error, layer by layer.
        skip: layers that stay as they are.
        rows: samples of a layer at most, drawn from all images and positions; at least one for each image.
        ridge: of the least squares, relative to the mean square of the layer's inputs.
        iterations: of the solver, per round.
        seed: draws the positions.
        progress: is told ("nettrim", done, total), in layers.

    Returns:
        The new network on the same device, each module in its mode; and what became of each layer, in their order.

    Raises:
        ValueError: a number out of range, an unknown scheme or form, no images.
        UnknownName: a layer in gamma or skip that the network does not have.
        ModelError: the forward raises; a layer runs not exactly once, or shares its weights.
    """
    if scheme not in SCHEMES or form not in FORMS:
        raise ValueError(f'scheme "{scheme}", form "{form}": known are {", ".join(SCHEMES)}; {", ".join(FORMS)}')
    gammas = gamma.values() if isinstance(gamma, Mapping) else [gamma]
    if not all(0 < each < 1 for each in gammas):
        raise ValueError(f"gamma = {gamma}: it must be in (0, 1), a share of the norm of a layer's outputs")
    if len(images) == 0 or rows < 1 or ridge < 0:
        raise ValueError(f"{len(images)} images, rows {rows}, ridge {ridge}: at least 1, 1 and 0")
    images = images.to(home(model))
    chosen = _chosen(model, images, gamma, skip)
    if not chosen:
        raise ValueError("no layer is left to make sparse: skip fewer")
    network = copy.deepcopy(model)
    drawn = {name: _Draw(rows, len(images), seed + place) for place, name in enumerate(chosen)}
    with torch.no_grad():
        _collect(model, images, drawn)
        found: list[TrimmedLayer] = []
        for done, (name, (follow, share)) in enumerate(chosen.items()):
            now = drawn[name]
            if scheme == "cascade" and found:
                now = _Draw(rows, len(images), seed + done)
                _collect(network, images, {name: now})
            layer = _Layer(network, follow)
            rows_of = drawn.pop(name).x
            try:
                row = layer.sparsify(rows_of, now.x, share, form, rounds, support, ridge, iterations)
            except ValueError as error:
                raise ValueError(f"layer {name}: {error}") from error
            found.append(row)
            if progress is not None:
                progress("nettrim", done + 1, len(chosen))
    return network, tuple(found)


def _chosen(
    model: nn.Module, images: Tensor, gamma: float | Mapping[str, float], skip: Collection[str]
) -> dict[str, tuple[Followed, float]]:
    """Return the layers to sparsify in the order they run, each with what follows it and its gamma."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    asked = gamma if isinstance(gamma, Mapping) else dict.fromkeys(layers, gamma)
    for name in (*asked, *skip):
        if name not in layers:
            raise UnknownName(f'the network has no convolution or linear layer "{name}"; {nearest(name, layers)}')
    known = followed(model, images[:2])
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LAYERS):
            owners.setdefault(id(module.weight), []).append(name)
    for name in asked:
        if name in skip:
            continue
        calls, shared = known[name].calls if name in known else 0, owners[id(layers[name].weight)]
        if calls != 1 or len(shared) > 1:
            sharing = f" and shares its weights ({', '.join(shared)})" if len(shared) > 1 else ""
            raise ModelError(f'layer "{name}" runs {calls} times in a forward{sharing}: it is not one problem; skip it')
    return {name: (known[name], asked[name]) for name in known if name in asked and name not in skip}


def _collect(model: nn.Module, images: Tensor, drawn: Mapping[str, _Draw]) -> None:
    """Run the images through a network and let each layer's draw take rows of its inputs."""
    modules = dict(model.named_modules())
    hooks = [modules[name].register_forward_pre_hook(draw) for name, draw in drawn.items()]
    try:
        with evaluating(model):
            for batch in torch.split(images, BATCH):
                forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()


class _Draw:
    """A hook that keeps rows of a layer's inputs, the same ones whenever it has the same seed.

    Args:
        rows: in all.
        images: that will pass.
        seed: of the positions.
    """

    def __init__(self, rows: int, images: int, seed: int) -> None:
        self.each = max(1, rows // images)  # for each image
        self.generator = torch.Generator().manual_seed(seed)
        self.parts: list[Tensor] = []

    def __call__(self, layer: nn.Module, inputs: Sequence[Tensor]) -> None:
        x = inputs[0].detach()
        if isinstance(layer, nn.Linear):
            flat = x.reshape(-1, x.shape[-1])
            self.parts.append(flat[self._places(len(flat), len(x)).to(x.device)][None])
        else:
            assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
            batched = x if x.dim() == layer.weight.dim() else x[None]
            lengths = output_lengths(layer, batched)
            places = self._places(len(batched) * math.prod(lengths), len(batched))
            self.parts.append(patches(layer, batched, places.to(x.device)))

    def _places(self, count: int, images: int) -> Tensor:
        """Draw among so many, without repetition; all in their order where they are few."""
        wanted = self.each * images
        if count <= wanted:
            return torch.arange(count)
        return torch.randperm(count, generator=self.generator)[:wanted]

    @property
    def x(self) -> Tensor:
        """The rows ``[G, P, N]``, in the network's type."""
        return torch.cat(self.parts, 1)


Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


def output_lengths(layer: Conv, x: Tensor) -> list[int]:
    """Return the spatial shape of a convolution's output."""
    pads = layer._reversed_padding_repeated_twice[::-1]
    return [
        (size + pads[2 * axis] + pads[2 * axis + 1] - layer.dilation[axis] * (layer.kernel_size[axis] - 1) - 1)
        // layer.stride[axis]
        + 1
        for axis, size in enumerate(x.shape[2:])
    ]


def patches(layer: Conv, x: Tensor, places: Tensor) -> Tensor:
    """Return what a convolution's output is made of at some places ``[G, P, C / G * taps]``, as its weights lie.

    Args:
        layer: with its stride, padding, dilation and groups.
        x: ``[N, C, *space]``.
        places: ``[P]``, of the outputs of all images: image by image, flattened.
    """
    lengths = output_lengths(layer, x)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    image, place = places // math.prod(lengths), places % math.prod(lengths)
    flat, rest = torch.zeros_like(places)[:, None], math.prod(lengths)
    for axis, length in enumerate(lengths):
        rest //= length
        reach = layer.dilation[axis] * torch.arange(layer.kernel_size[axis], device=x.device)
        taken = (place // rest % length * layer.stride[axis])[:, None] + reach  # [P, kernel]
        flat = (flat[:, :, None] * x.shape[2 + axis] + taken[:, None, :]).flatten(1)
    rows = x.flatten(2)[image[:, None], :, flat].mT  # [P, C, taps]
    return rows.reshape(len(places), layer.groups, -1).movedim(1, 0)


class _Layer:
    """A layer of the new network as matrices, with its BatchNorm folded into them, in float64.

    Args:
        network: that it is written to.
        follow: what follows it.
    """

    def __init__(self, network: nn.Module, follow: Followed) -> None:
        module = network.get_submodule(follow.name)
        assert isinstance(module, LAYERS)
        self.module, self.follow = module, follow
        self.groups = 1 if isinstance(module, nn.Linear) else module.groups
        weight = module.weight.detach().double()
        self.taps = weight[0, 0].numel()
        self.norm = network.get_submodule(follow.norm) if follow.norm else None
        self.scale = weight.new_ones(len(weight))
        self.shift = weight.new_zeros(len(weight))  # of the folded bias, without what is learnt and written to
        if self.norm is not None:
            norm = self.norm
            assert isinstance(norm, _BatchNorm)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            self.scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
            own = module.bias.detach().double() if module.bias is not None else 0.0
            self.shift = self.scale * (own - norm.running_mean.double())
        written = module.bias if self.norm is None else self.norm.bias
        assert written is None or isinstance(written, Tensor)
        self.bias = written
        self.matrix = self._matrix(weight.flatten(1) * self.scale[:, None])  # [G, N, M]
        self.folded = (
            None if self.bias is None else (self.bias.detach().double() + self.shift).reshape(self.groups, -1)
        )  # [G, M]

    def sparsify(
        self,
        x: Tensor,
        now: Tensor,
        gamma: float,
        form: Form,
        rounds: int,
        support: Support,
        ridge: float,
        iterations: int,
    ) -> TrimmedLayer:
        """Solve, take the least squares, write them, and compare with magnitude pruning.

        Args:
            x: rows of its inputs in the original network.
            now: the same rows in the network so far.
            gamma: of a layer whose inputs are the original's.
            form: of the penalty; `rounds`, `support`, `ridge` and `iterations` are as for `sparsify_layers`.
        """
        original, x = self._output(x.double()), now.double() if (changed := not torch.equal(x, now)) else x.double()
        rectified = self.follow.rectified
        y = original.clamp(min=0) if rectified else original
        omega = y > POSITIVE if rectified else torch.ones_like(y, dtype=torch.bool)
        norm, limit = float(y.norm()), torch.zeros_like(y)
        epsilon = gamma * norm
        if changed:  # the cascade; the original weights meet this one
            output = self._output(x)
            epsilon = math.sqrt(SPREAD) * float(((output - y) * omega).norm())
            limit = output
        known = self.matrix if self.folded is None else torch.cat([self.matrix, self.folded[:, None]], 1)
        trimmed = trim(
            x,
            y,
            epsilon,
            omega=omega,
            limit=limit,
            form=form,
            rounds=rounds,
            taps=self.taps,
            bias=self.folded is not None,
            known=known,
            iterations=iterations,
        )
        alive = self._matrix((self.scale != 0)[:, None].expand(-1, self.matrix.shape[1]))
        weights = trimmed.weights * alive  # an output that the BatchNorm multiplies by 0 needs none
        bias = None if self.folded is None else trimmed.bias
        ours = refit(x, y, weights, bias, omega=omega, ridge=ridge)
        kept = int(ours.weights.count_nonzero())
        largest = self._largest(kept, form)
        theirs = refit(x, y, self.matrix * largest, self.folded, omega=omega, ridge=ridge)
        written = {"solved": ours, "magnitude": theirs, "better": min(theirs, ours, key=lambda found: found.error)}
        self._write(written[support])
        return TrimmedLayer(
            layer=self.follow.name,
            norm=self.follow.norm,
            rectified=rectified,
            rows=x.shape[1],
            weights=self.module.weight.numel(),
            nonzero=int(self.module.weight.count_nonzero()),
            gamma=epsilon / norm if norm else 0.0,
            epsilon=epsilon,
            residual=trimmed.residual,
            violation=trimmed.violation,
            iterations=trimmed.iterations,
            refitted=int(written[support].changed.sum()),
            outputs=ours.changed.numel(),
            error=written[support].error,
            baseline_error=theirs.error,
        )

    def _output(self, x: Tensor) -> Tensor:
        """Return what the layer makes of rows, with its BatchNorm ``[G, P, M]``."""
        return x @ self.matrix if self.folded is None else torch.baddbmm(self.folded[:, None], x, self.matrix)

    def _largest(self, count: int, form: Form) -> Tensor:
        """Return the mask of the largest weights as they lie in the layer, of "rows" that of its largest inputs."""
        size = self._matrix(self.module.weight.detach().double().flatten(1)).abs()
        if form == "rows":
            rows = size.reshape(len(size), -1, self.taps * size.shape[2]).norm(dim=2)
            size = rows.repeat_interleave(self.taps, 1)[..., None].expand(size.shape)
        mask = torch.zeros(size.numel(), dtype=torch.bool, device=size.device)
        mask[size.reshape(-1).argsort(descending=True, stable=True)[:count]] = True
        return mask.reshape(size.shape)

    def _write(self, found: Refitted) -> None:
        """Write the weights that fold to these, and the bias."""
        weights = found.weights.mT.reshape(len(self.scale), -1)
        divisor = torch.where(self.scale == 0, 1.0, self.scale)[:, None]
        unfolded = weights / divisor + 0.0  # a zero that was masked or divided may be -0.0, which packs as a value
        self.module.weight.copy_(unfolded.reshape(self.module.weight.shape))
        if self.bias is not None:
            self.bias.copy_(found.bias.reshape(-1) - self.shift)

    def _matrix(self, weight: Tensor) -> Tensor:
        """Turn weights ``[O, N]`` into ``[G, N, M]``, with O = G M."""
        return weight.reshape(self.groups, -1, weight.shape[1]).mT.contiguous()
