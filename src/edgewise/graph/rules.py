"""One rule per operator: what its result's channels are, and which channels it ties together.

A rule is a function ``(tracer, call) -> identities``, one for each result that is an activation. The table at the
foot maps an ATen operator's name to its rule. What a rule cannot follow exactly it freezes: frozen channels are never
removed, so the operator sees what it always saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from edgewise.graph.trace import FROZEN, Atoms, Call, Extent, Ids, Layer, LayerShape, Rule, Tracer

# -- identities as arrays -------------------------------------------------------------------------------------------


def support(factor: Atoms) -> tuple[int, ...]:
    """Return the dimensions a factor runs over, counted from the end (so that broadcasting needs no alignment).

    >>> support(np.arange(6).reshape(1, 6, 1, 1))
    (-3,)
    """
    rank = factor.ndim
    return tuple(d - rank for d in range(rank) if factor.shape[d] > 1)


def reshape_factor(factor: Atoms, old: Sequence[int], new: Sequence[int]) -> Atoms:
    """Reshape a factor as its tensor is reshaped, expanding only the dimensions that are merged with its own.

    >>> reshape_factor(np.array([7, 8]).reshape(1, 2, 1, 1), (1, 2, 1, 3), (1, 6))
    array([[7, 7, 7, 8, 8, 8]])
    """
    shape: list[int] = []
    full: list[int] = []
    for old_dims, new_dims in _blocks(old, new):
        runs = any(factor.shape[d] > 1 for d in old_dims)
        full += [old[d] if runs else 1 for d in old_dims]
        shape += [new[d] if runs else 1 for d in new_dims]
    return np.broadcast_to(factor, full).reshape(shape)


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Match the dimensions of two shapes of equally many elements in the smallest runs of equal product.

    >>> _blocks((2, 3, 4), (6, 4))
    [([0, 1], [0]), ([2], [1])]
    """
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [i] if i < len(old) else [], [j] if j < len(new) else []
        a, b = (old[i] if left else 1), (new[j] if right else 1)
        i, j = i + len(left), j + len(right)
        while a != b:
            if a < b:
                a, i = a * old[i], i + 1
                left.append(i - 1)
            else:
                b, j = b * new[j], j + 1
                right.append(j - 1)
        blocks.append((left, right))
    return blocks


def _along(atoms: Atoms, dim: int, rank: int) -> Ids:
    """Lay atoms ``[C]`` along one dimension of a tensor; a single channel has no identity."""
    return (atoms.reshape([-1 if d == dim % rank else 1 for d in range(rank)]),) if atoms.size > 1 else ()


def _kept(t: Tracer, tensor: Tensor, dims: set[int]) -> Ids:
    """Return the factors that avoid these (negative) dimensions; freeze those that run over one and another."""
    kept = []
    for factor in t.ids(tensor):
        runs = set(support(factor))
        if not runs & dims:
            kept.append(factor)
        elif not runs <= dims:
            t.freeze(factor)
    return tuple(kept)


# -- arithmetic -----------------------------------------------------------------------------------------------------


def pointwise(t: Tracer, call: Call) -> list[Ids]:
    """Element by element with broadcasting: operands that vary over the same dimensions are tied there."""
    rank = call.out.dim()
    operands = [x for x in (*call.args, *call.kwargs.values()) if isinstance(x, Tensor) and x.dim()]
    if len(operands) == 1:
        return [t.ids(operands[0])]
    return [_meet(t, [t.ids(x) for x in operands], [tuple(x.shape) for x in operands], rank)]


def _meet(t: Tracer, identities: Sequence[Ids], shapes: Sequence[tuple[int, ...]], rank: int) -> Ids:
    """Tie operands of one broadcast; freeze a factor where an operand varies over it without knowing its channels."""
    joint: dict[tuple[int, ...], Atoms] = {}
    owners: dict[tuple[int, ...], set[int]] = {}
    for position, ids in enumerate(identities):
        for factor in ids:
            over = support(factor)
            factor = factor.reshape((1,) * (rank - factor.ndim) + factor.shape)
            t.tie(joint.setdefault(over, factor), factor)
            owners.setdefault(over, set()).add(position)
    for over, factor in joint.items():
        for position, shape in enumerate(shapes):
            varies = any(-d <= len(shape) and shape[d] > 1 for d in over)
            if varies and position not in owners[over]:
                t.freeze(factor)
    return tuple(joint.values())


def nothing(t: Tracer, call: Call) -> list[Ids]:
    """Make tensors that carry no channels."""
    return [()] * (len(call.out) if isinstance(call.out, tuple | list) else 1)


def frozen(t: Tracer, call: Call) -> list[Ids]:
    """Mix channels in a way that no removal leaves exact: freeze them."""
    for argument in (*call.args, *call.kwargs.values()):
        for tensor in argument if isinstance(argument, list | tuple) else [argument]:
            if isinstance(tensor, Tensor):
                t.freeze(*t.ids(tensor))
    return nothing(t, call)


# -- layers ---------------------------------------------------------------------------------------------------------


def convolution(t: Tracer, call: Call) -> list[Ids]:
    """Tie input channels to the weight's in-dimension; grouped ones, the same offset of every group."""
    x, weight, bias = call.args[:3]
    transposed, groups = call.args[6], call.args[8]
    rank = x.dim()
    out_dim, in_dim = (1, 0) if transposed else (0, 1)
    source, w_in, w_out = t.axis(x, 1), t.axis(weight, in_dim), t.axis(weight, out_dim)
    for factor in t.ids(x):
        if set(support(factor)) != {1 - rank}:
            t.freeze(factor)
    if not t.is_stored(weight):  # the filters are computed from the input: no weight reads these channels
        t.freeze(source, w_in, w_out)
        target = np.zeros(call.out.shape[1], np.int64)
    elif groups == 1:
        t.tie(source, w_in)
        t.read_by(weight, w_in)
        target = w_out
    elif transposed and groups == weight.shape[0] and weight.shape[1] == 1:  # depthwise
        t.tie(source, w_in)
        target = w_in
    elif transposed:  # in: [g, I/g] along the weight's dim 0; out: the same O/g offsets for every group
        t.tie(source, w_in)
        t.read_by(weight, w_in)
        target = np.tile(w_out, groups)
        _same_offsets(t, source, groups)
    elif weight.shape[1] == 1:  # depthwise: each input channel makes O/I outputs of its own
        t.tie(np.repeat(source, len(w_out) // groups), w_out)
        target = w_out
    else:
        t.tie(source, np.tile(w_in, groups))
        t.read_by(weight, w_in)
        _same_offsets(t, w_out, groups)
        target = w_out
    t.freeze(*(f for f in t.ids(weight) if f.shape[out_dim] == f.shape[in_dim] == 1))  # the kernel's own extent
    if bias is not None:
        t.tie(t.axis(bias, 0), target)
    ids = _along(target, 1, rank)
    # Each output element meets every tap of its filter; transposed, each input element every tap it is spread to.
    meets, taps_of = (x, in_dim) if transposed else (call.out, out_dim)
    taps = tuple(1 if d == taps_of else n for d, n in enumerate(weight.shape))
    taps_ids = tuple(f for f in t.ids(weight) if f.shape[taps_of] == 1)
    t.macs = (Extent(tuple(meets.shape), t.ids(x) if transposed else ids), Extent(taps, taps_ids))
    depthwise = groups > 1 and groups == x.shape[1] == call.out.shape[1]
    shape = LayerShape(
        "transposed" if transposed else "convolution",
        size=tuple(x.shape[2:]),
        kernel=tuple(weight.shape[2:]),
        stride=tuple(call.args[3]),
        padding=tuple(call.args[4]),
        dilation=tuple(call.args[5]),
        groups=0 if depthwise else groups,
        inputs=x.shape[1],
        outputs=call.out.shape[1],
    )
    t.layer = Layer(shape, source, target)
    return [ids]


def _same_offsets(t: Tracer, atoms: Atoms, groups: int) -> None:
    """Tie the channels at the same offset of every group, so that all groups stay of one width."""
    rows = atoms.reshape(groups, -1)
    t.tie(np.tile(rows[0], groups - 1), rows[1:])


def matmul(t: Tracer, call: Call) -> list[Ids]:
    """Matrix product of the last two arguments: tie what is contracted and what is one batch, keep the rest."""
    bias, (a, b) = (call.args[0], call.args[1:3]) if call.op in ("addmm", "baddbmm") else (None, call.args[:2])
    left, right = t.axis(a, -1), t.axis(b, -2)
    for tensor, atoms in ((a, left), (b, right)):
        if t.is_stored(tensor):
            t.read_by(tensor, atoms)
    if t.is_stored(a) or t.is_stored(b):
        t.tie(left, right)
    else:  # no weight reads these channels, so there is none to silence
        t.freeze(left, right)
    rows, columns = _kept(t, a, {-1}), _kept(t, b, {-2})
    mixed = [f for f in (*rows, *columns) if len(support(f)) > 1 and set(support(f)) & {-1, -2}]
    t.freeze(*mixed)  # rows or columns that know their batch as well
    batches = [tuple(f for f in ids if not set(support(f)) & {-1, -2}) for ids in (rows, columns)]
    shapes = [(*tensor.shape[:-2], 1, 1) for tensor in (a, b)]
    ids = (
        *_meet(t, batches, shapes, call.out.dim()),
        *(f for f in rows if support(f) == (-2,)),
        *(f for f in columns if support(f) == (-1,)),
    )
    t.macs = (Extent(tuple(call.out.shape), ids), Extent((a.shape[-1],), _along(left, 0, 1)))
    if t.is_stored(b):
        shape = LayerShape("linear", (prod(call.out.shape[:-1]),), (), (), (), (), 1, a.shape[-1], b.shape[-1])
        t.layer = Layer(shape, left, t.axis(b, -1))
    if bias is None:
        return [ids]
    return [_meet(t, [t.ids(bias), ids], [tuple(bias.shape), tuple(call.out.shape)], call.out.dim())]


def batch_norm(t: Tracer, call: Call) -> list[Ids]:
    """Normalise each channel by itself: tie the affine parameters and the running statistics.

    With the batch's own statistics (a standardised weight, an instance norm) other dimensions' channels count.
    """
    x = call.args[0]
    if any(argument is True for argument in call.args[3:6]):
        others = [f for f in t.ids(x) if set(support(f)) - {1 - x.dim()}]
        t.inexact += [(f, f'statistics over channels in "{t.module[0]}"') for f in others]
    for stored in call.args[1:5]:
        if isinstance(stored, Tensor):
            t.tie(t.axis(x, 1), t.axis(stored, 0))
    return [t.ids(x)]  # the statistics it also returns are no activations


def layer_norm(t: Tracer, call: Call) -> list[Ids]:
    """Normalise over the last dimensions: their statistics change when one of their channels goes."""
    x, shape = call.args[:2]
    over = {-1 - d for d in range(len(shape))}
    t.inexact += [(f, f'layer normalisation "{t.module[0]}"') for f in t.ids(x) if set(support(f)) & over]
    for stored in call.args[2:4]:
        if isinstance(stored, Tensor):
            _meet(t, [t.ids(x), t.ids(stored)], [tuple(x.shape), tuple(stored.shape)], x.dim())
    return [t.ids(x)]


def group_norm(t: Tracer, call: Call) -> list[Ids]:
    """Normalise over groups of channels: all groups keep one width, and their statistics change."""
    x, weight, bias, groups = call.args[0], call.args[1], call.args[2], call.args[6]
    atoms = t.axis(x, 1)
    if groups < x.shape[1]:  # else each channel is normalised by itself
        if groups > 1:
            _same_offsets(t, atoms, groups)
        t.inexact.append((atoms, f'group normalisation "{t.module[0]}"'))
    for stored in (weight, bias):
        if isinstance(stored, Tensor):
            t.tie(atoms, t.axis(stored, 0))
    return [t.ids(x)]


# -- reductions and pooling -----------------------------------------------------------------------------------------


def reduction(t: Tracer, call: Call) -> list[Ids]:
    """Reduce over some dimensions: channels among them leave the result, which then depends on how many there were."""
    x = call.args[0]
    first = 2 if call.op == "linalg_vector_norm" else 1  # after the norm's order
    dims = call.argument(first, "dim")
    keep_dim = bool(call.argument(first + 1, "keepdim", False))
    rank = x.dim()
    dims = list(range(rank)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    over = {d % rank - rank for d in dims}
    t.inexact += [(f, f'{call.op} over channels in "{t.module[0]}"') for f in t.ids(x) if set(support(f)) & over]
    ids = _kept(t, x, over)
    gone = tuple(d + rank for d in over)
    return [ids if keep_dim else tuple(f.squeeze(gone) for f in ids)] * (2 if call.op == "max" else 1)


def windows(t: Tracer, call: Call) -> list[Ids]:
    """Pool or resize the trailing dimensions; a factor that runs over them cannot be followed."""
    x = call.args[0]
    spatial = {-1} if call.op.endswith("1d") else {-1, -2}
    t.freeze(*(f for f in t.ids(x) if set(support(f)) & spatial))
    return [tuple(f for f in t.ids(x) if not set(support(f)) & spatial)]  # indices of maxima are no activations


# -- views ----------------------------------------------------------------------------------------------------------


def same(t: Tracer, call: Call) -> list[Ids]:
    """Copy or convert: the channels stay where they are."""
    return [t.ids(call.args[0])]


def restride(t: Tracer, call: Call) -> list[Ids]:
    """Change strides in place: the channels stay where they are if the shape does."""
    x = call.args[0]
    return [t.ids(x)] if tuple(x.shape) == tuple(call.out.shape) == tuple(call.args[1]) else frozen(t, call)


def reshape(t: Tracer, call: Call) -> list[Ids]:
    """Split and merge dimensions; what is merged with a channel dimension carries its channels along.

    Where a channel dimension is split, the channels at one offset of every part are tied: all parts stay of one width,
    as in a shuffle ``view(n, 2, c // 2, h, w)``. Whether the forward lets that width change is found by running it.
    """
    old, new = tuple(call.args[0].shape), tuple(call.out.shape)
    return [tuple(_one_dimension(t, reshape_factor(f, old, new)) for f in t.ids(call.args[0]))]


def _one_dimension(t: Tracer, factor: Atoms) -> Atoms:
    """Return a factor that varies over one dimension: constant ones dropped, of several the last kept, the rest tied.

    >>> _one_dimension(Tracer(nn.Identity()), np.array([[1, 1], [2, 2]]))
    array([[1],
           [2]])
    """
    for dim in range(factor.ndim):
        first = factor[(slice(None),) * dim + (slice(0, 1),)]
        if factor.shape[dim] > 1 and (factor == first).all():
            factor = first
    for dim in [d for d in range(factor.ndim) if factor.shape[d] > 1][:-1]:
        factor = _tie_parts(t, factor, dim)
    return factor


def _tie_parts(t: Tracer, factor: Atoms, dim: int) -> Atoms:
    """Tie everything along one dimension and return its first part, of size 1 there."""
    first = factor[(slice(None),) * dim + (slice(0, 1),)]
    t.tie(np.broadcast_to(first, factor.shape), factor)
    return first


def permute(t: Tracer, call: Call) -> list[Ids]:
    """Reorder dimensions."""
    return [tuple(f.transpose(call.args[1]) for f in t.ids(call.args[0]))]


def transpose(t: Tracer, call: Call) -> list[Ids]:
    """Swap two dimensions; `t` swaps the two of a matrix."""
    rank = call.args[0].dim()
    a, b = call.args[1:3] if call.op == "transpose" else (0, rank - 1)
    return [tuple(f.swapaxes(a, b) for f in t.ids(call.args[0]))]


def expand(t: Tracer, call: Call) -> list[Ids]:
    """Broadcast to a larger shape."""
    rank = call.out.dim()
    return [tuple(f.reshape((1,) * (rank - f.ndim) + f.shape) for f in t.ids(call.args[0]))]


def slice_dim(t: Tracer, call: Call) -> list[Ids]:
    """Take a range of one dimension."""
    x, dim = call.args[0], call.argument(1, "dim", 0)
    start, step = call.argument(2, "start") or 0, call.argument(4, "step", 1)
    size = x.shape[dim]
    start = max(0, start + size if start < 0 else start)
    taken = slice(start, start + call.out.shape[dim] * step, step)
    if call.out.shape[dim] == size:
        return [t.ids(x)]
    return [tuple(_take(t, f, dim % x.dim(), taken) for f in t.ids(x))]


def _take(t: Tracer, factor: Atoms, dim: int, taken: slice) -> Atoms:
    """Take a range of a factor's dimension.

    One of several equal parts keeps its channels, tied to those at the same offset of the others, so that the cut
    stays between the parts. Any other range is stated in the forward: the channels in and beside it are frozen.
    """
    size = factor.shape[dim]
    if size == 1:
        return factor
    part = taken.stop - taken.start
    if taken.step in (None, 1) and part and size % part == 0 and taken.start % part == 0:
        parts = factor.reshape(*factor.shape[:dim], size // part, part, *factor.shape[dim + 1 :])
        _tie_parts(t, parts, dim)
    else:
        t.freeze(factor)
    return factor[(slice(None),) * dim + (taken,)]


def select(t: Tracer, call: Call) -> list[Ids]:
    """Take one index of a dimension away; a channel that is picked by number is frozen with its neighbours."""
    x, dim, index = call.args[:3]
    t.freeze(*(f for f in t.ids(x) if f.shape[dim] > 1))
    ids: list[Atoms] = [np.take(f, index if f.shape[dim] > 1 else 0, axis=dim) for f in t.ids(x)]
    return [tuple(f for f in ids if f.size > 1)]


def split(t: Tracer, call: Call) -> list[Ids]:
    """Cut one dimension into parts: equal ones lose the same channels, others none."""
    x, dim = call.args[0], call.argument(2, "dim", 0)
    results, start = [], 0
    for part in call.out:
        taken = slice(start, start + part.shape[dim])
        results.append(tuple(_take(t, f, dim % x.dim(), taken) for f in t.ids(x)))
        start = taken.stop
    return results


def unbind(t: Tracer, call: Call) -> list[Ids]:
    """Cut one dimension into its indices; channels along it are frozen."""
    x, dim = call.args[0], call.argument(1, "dim", 0)
    ids = _kept(t, x, {dim % x.dim() - x.dim()})
    t.freeze(*(f for f in t.ids(x) if f.shape[dim] > 1))
    return [tuple(f.squeeze(dim) for f in ids)] * len(call.out)


def index(t: Tracer, call: Call) -> list[Ids]:
    """Pick by tensors of indices: the dimensions that are picked from are frozen, the others go along."""
    x, indices = call.args[0], call.args[1]
    picked = [d for d, i in enumerate(indices) if i is not None]
    if any(indices[d].dtype == torch.bool for d in picked):
        return frozen(t, call)
    ids = _kept(t, x, {d - x.dim() for d in picked})
    t.freeze(*(f for f in t.ids(x) if any(f.shape[d] > 1 for d in picked)))
    new = call.out.dim() - (x.dim() - len(picked))  # the dimensions of what is picked
    apart = picked != list(range(picked[0], picked[-1] + 1))
    at = 0 if apart else picked[0]  # they come first where others lie between them
    rest = [d for d in range(x.dim()) if d not in picked]
    shapes = [[f.shape[d] for d in rest] for f in ids]
    return [tuple(f.reshape(*shape[:at], *[1] * new, *shape[at:]) for f, shape in zip(ids, shapes, strict=True))]


def stack(t: Tracer, call: Call) -> list[Ids]:
    """Lay operands side by side in a new dimension: they are tied element by element."""
    tensors, dim = call.args[0], call.argument(1, "dim", 0)
    rank = call.out.dim() - 1
    ids = _meet(t, [t.ids(x) for x in tensors], [tuple(x.shape) for x in tensors], rank)
    return [tuple(np.expand_dims(f, dim % (rank + 1)) for f in ids)]


def repeat(t: Tracer, call: Call) -> list[Ids]:
    """Repeat a tensor along its dimensions: a channel goes with its copies."""
    times = call.args[1]
    lead = len(times) - call.args[0].dim()
    shaped = [f.reshape((1,) * lead + f.shape) for f in t.ids(call.args[0])]
    return [tuple(np.tile(f, [n if size > 1 else 1 for n, size in zip(times, f.shape, strict=True)]) for f in shaped)]


def flip(t: Tracer, call: Call) -> list[Ids]:
    """Reverse some dimensions."""
    return [tuple(np.flip(f, call.args[1]) for f in t.ids(call.args[0]))]


def along(t: Tracer, call: Call) -> list[Ids]:
    """Mix the elements along some dimensions in an order the forward states: channels there are frozen."""
    x = call.args[0]
    dims = call.args[2] if call.op == "roll" else [call.args[1]]
    t.freeze(*(f for f in t.ids(x) if any(f.shape[d] > 1 for d in dims)))
    return [t.ids(x)]


def unfold(t: Tracer, call: Call) -> list[Ids]:
    """Take windows of one dimension into a new last one; channels along it are frozen."""
    x, dim = call.args[0], call.args[1]
    ids = _kept(t, x, {dim % x.dim() - x.dim()})
    t.freeze(*(f for f in t.ids(x) if f.shape[dim] > 1))
    return [tuple(f[..., None] for f in ids)]


def patches(t: Tracer, call: Call) -> list[Ids]:
    """Lay the windows of an image ``[N, C, H, W]`` out as ``[N, C kh kw, L]``, or add them up again."""
    x, taps = call.args[0], prod(call.args[1] if call.op == "im2col" else call.args[2])
    atoms = t.axis(x, 1)
    t.freeze(*(f for f in t.ids(x) if f.shape[1] == 1))
    if call.op == "im2col":
        return [_along(np.repeat(atoms, taps), 1, 3)]
    return [_along(_tie_parts(t, atoms.reshape(-1, taps), 1).reshape(-1), 1, 4)]


def concatenate(t: Tracer, call: Call) -> list[Ids]:
    """Lay operands one after another; their other dimensions are tied element by element."""
    tensors, dim = call.args[0], call.argument(1, "dim", 0)
    rank = call.out.dim()
    dim %= rank
    if not any(f.shape[dim] > 1 for x in tensors for f in t.ids(x)):
        return [_meet(t, [t.ids(x) for x in tensors], [tuple(x.shape) for x in tensors], rank)]
    along = np.concatenate([t.axis(x, dim) for x in tensors])
    others = [_kept(t, x, {dim - rank}) for x in tensors]
    return [(*_along(along, dim, rank), *_meet(t, others, [tuple(x.shape) for x in tensors], rank))]


def pad(t: Tracer, call: Call) -> list[Ids]:
    """Put constants around. Channels put there by a padding module go with those they are added to.

    A module that is used twice puts the same channels there.
    """
    x, pads = call.args[:2]
    path, module = t.module
    ids = t.ids(x)
    for position in range(len(pads) // 2):
        before, after = pads[2 * position], pads[2 * position + 1]
        dim = x.dim() - 1 - position
        if not (before or after) or not any(f.shape[dim] > 1 for f in ids):
            continue
        if before < 0 or after < 0 or not isinstance(module, nn.ConstantPad1d | nn.ConstantPad2d | nn.ConstantPad3d):
            new = np.full(max(before, 0) + max(after, 0), FROZEN)
        else:
            new = t.padding_atoms(path, position, before + after)
        before = max(before, 0)
        t.freeze(*(f for f in ids if f.shape[dim] > 1 and f.size > f.shape[dim]))
        along = np.concatenate([new[:before], t.axis(x, dim), new[before:]])
        if along.size != call.out.shape[dim]:  # a negative padding cuts channels away
            t.freeze(along)
            along = np.full(call.out.shape[dim], FROZEN)
        ids = (*(f for f in ids if f.shape[dim] == 1), *_along(along, dim, x.dim()))
    return [ids]


# -- results on the meta device, where torch would compute their shapes in Python ------------------------------------


def like_first(x: Tensor, *_: object, **__: object) -> Tensor:
    """Make a tensor like the first operand."""
    return torch.empty_like(x)


def normalized(x: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor, Tensor]:
    """Make a normalisation's results: one like its operand, and statistics that nothing reads."""
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


def reduced(x: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, **_: object) -> Tensor:
    """Make the result of a reduction over some dimensions, or over all.

    >>> reduced(torch.zeros(2, 3, 4), [-1, 0]).shape, reduced(torch.zeros(2, 3), None).shape
    (torch.Size([3]), torch.Size([]))
    """
    over = {d % x.dim() for d in dim or range(x.dim())}
    sizes = [1 if d in over else size for d, size in enumerate(x.shape)]
    return x.new_empty(sizes if keepdim else [size for d, size in enumerate(sizes) if d not in over])


# -- the table ------------------------------------------------------------------------------------------------------


def _table(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_table(Rule(convolution), "convolution"),
    **_table(Rule(matmul), "mm addmm bmm baddbmm"),
    **_table(
        Rule(batch_norm, overwrites=True, make=normalized, zero="never"),
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training",
    ),
    **_table(Rule(layer_norm, overwrites=True, make=normalized, zero="never"), "native_layer_norm"),
    **_table(Rule(group_norm, overwrites=True, make=normalized, zero="never"), "native_group_norm"),
    **_table(
        Rule(pointwise, overwrites=True, make=like_first, exact_numbers=True),
        "neg abs sqrt relu relu_ hardtanh hardtanh_ leaky_relu leaky_relu_ elu elu_ gelu silu silu_ mish mish_ tanh "
        "tanh_ hardswish hardswish_ erf sin",
    ),
    **_table(
        Rule(pointwise, overwrites=True, make=like_first, zero="never", exact_numbers=True),
        "exp log rsqrt sigmoid sigmoid_ hardsigmoid hardsigmoid_ softplus cos",
    ),
    **_table(
        Rule(pointwise, overwrites=True, exact_numbers=True),
        "add add_ sub sub_ maximum minimum clamp clamp_ clamp_min clamp_min_ clamp_max addcmul where",
    ),
    **_table(Rule(pointwise, overwrites=True, zero="factor", exact_numbers=True), "mul mul_"),
    **_table(Rule(pointwise, overwrites=True, zero="first", exact_numbers=True), "div div_"),
    **_table(
        Rule(pointwise, overwrites=True, zero="never", exact_numbers=True), "rsub pow reciprocal bitwise_not eq gt lt"
    ),
    **_table(Rule(reduction, make=reduced), "mean"),
    **_table(Rule(reduction), "sum amax amin var max linalg_vector_norm"),
    **_table(
        Rule(windows),
        "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d "
        "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bicubic2d_aa upsample_linear1d "
        "reflection_pad2d replication_pad2d",
    ),
    **_table(Rule(same), "clone _to_copy lift_fresh"),
    **_table(Rule(pointwise, zero="never"), "copy_"),
    **_table(Rule(same, view=True), "alias detach"),
    **_table(Rule(restride, view=True), "as_strided_"),
    **_table(Rule(reshape, view=True), "view _unsafe_view _reshape_alias squeeze unsqueeze"),
    **_table(Rule(permute, view=True), "permute"),
    **_table(Rule(transpose, view=True), "transpose t"),
    **_table(Rule(expand, view=True), "expand"),
    **_table(Rule(slice_dim, view=True), "slice"),
    **_table(Rule(select, view=True), "select"),
    **_table(Rule(split, view=True), "split split_with_sizes unsafe_split"),
    **_table(Rule(unbind, view=True), "unbind"),
    **_table(Rule(concatenate), "cat"),
    **_table(Rule(stack), "stack"),
    **_table(Rule(index), "index"),
    **_table(Rule(repeat), "repeat"),
    **_table(Rule(flip), "flip"),
    **_table(Rule(along), "roll cumsum"),
    **_table(Rule(unfold, view=True), "unfold"),
    **_table(Rule(patches), "im2col col2im"),
    **_table(Rule(pad), "constant_pad_nd"),
    **_table(Rule(frozen, zero="never"), "_softmax _safe_softmax"),
    **_table(Rule(same, reads=False, zero="never"), "empty_like zeros_like ones_like"),
    **_table(Rule(same, reads=False, zero="never", exact_numbers=True), "full_like"),
    **_table(Rule(nothing, reads=False), "empty zeros ones arange eye new_zeros new_ones"),
    **_table(Rule(nothing, reads=False, exact_numbers=True), "full scalar_tensor new_full"),
}
