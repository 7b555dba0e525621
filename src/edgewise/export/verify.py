"""Proofs: a file computes what its network computes, and two networks compute the same.

A `Check` holds what was found beside what was allowed, so that a manifest can be read without the code. Finding and
judging are separate: the functions here return checks, `require` stops at one that failed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from edgewise.devices.runtimes import RUNTIMES, infer, open_session, runtime_of
from edgewise.errors import CheckFailed, MeasurementFailed, one_line
from edgewise.export.tail import has_tail
from edgewise.graph.trace import evaluating
from edgewise.tasks import same_class
from edgewise.train.forward import forward

Alike = Callable[[Tensor, Tensor], float]
BATCH = 64
TRAINED, FOUR_BITS = "int8 trained", "int4 weights"  # artifacts that may differ more from the float network
SAME_CODES = 1e-5  # of the largest logit: what the last product's floats may differ by
ROUNDED, COST_SHARE = 0.02, 0.6  # of the logits, and of what quantising costs: what rounding the other way may change
ANSWERS_ALIKE = (0.9, 0.99)  # the least share of equal answers of two runtimes: on codes, and on floats
SOUND, LOOSE = (0.8, 0.3), (0.5, 1.0)  # the least share of equal classes, the largest error of the logits


@dataclass(frozen=True)
class Check:
    """One equality that was looked at.

    Args:
        name: what should hold.
        passed: whether it does.
        value: what was found.
        limit: the most or the least it may be.
        unit: of both, such as "of the largest output".
        detail: on what it was found.
    """

    name: str
    passed: bool
    value: float
    limit: float
    unit: str
    detail: str = ""


def outputs(
    path: Path,
    inputs: Tensor,
    threads: int | None = None,
    *,
    batch: int = BATCH,
    runtime: str = "onnxruntime",
) -> Tensor:
    """Compute a file's outputs in a runtime.

    Args:
        path: a file with one input; its first output counts. A file of 8-bit codes is given and read as floats, and one
            with its channels last is given them last.
        inputs: ``[N, C, H, W]`` float32.
        threads: how many threads it may use; by default one for each core.
        batch: how many images at a time, where the file does not say it.
        runtime: a name of `edgewise list runtimes`; a file that it does not take, but only one other does, runs there.

    Returns:
        ``[N, classes]`` float32.

    Raises:
        UnknownName: there is no such runtime.
        UserError: there is no such file, or no runtime takes such files.
        MissingExtra: the runtime is not installed.
        MeasurementFailed: it cannot load the file, or not run it on these inputs.
    """
    name = runtime_of(path, runtime)
    session = open_session(path, name, threads)
    stated = session.inputs[0].dims[0] if session.inputs and session.inputs[0].dims else None
    parts = torch.split(inputs.detach().cpu(), stated if isinstance(stated, int) and stated > 0 else batch)
    try:
        found = [infer(session, part.numpy()) for part in parts]
    except Exception as error:
        about = f"{RUNTIMES[name].title} cannot run it on inputs {list(inputs.shape)}"
        raise MeasurementFailed(f"{path}: {about}: {one_line(error)}") from error
    return torch.cat([torch.from_numpy(part) for part in found])


def compare_float(model: nn.Module, path: Path, inputs: Tensor, *, limit: float = 1e-4) -> Check:
    """Find how far a float file's outputs are from the network's: max |file - network| / max |network|.

    The file runs once on all inputs in large batches, and on some of them one by one, since its batch axis is open.

    Args:
        model: what was exported; it is run in evaluation mode.
        path: the file.
        inputs: real ones, ``[N, C, H, W]`` float32.
        limit: float32 has 24 bits, and each layer rounds in an order of its own; a fault shows far above this.
    """
    expected = network_outputs(model, inputs)
    single = min(len(inputs), 8)
    errors = [
        relative_error(outputs(path, inputs), expected),
        relative_error(outputs(path, inputs[:single], batch=1), expected[:single]),
    ]
    error = float(np.max(errors))  # Python's max would pass over a NaN
    detail = f"{len(inputs)} images in batches of up to {BATCH}, {single} of them also one by one"
    return _at_most("exported equals network", error, limit, "of the largest output", detail)


def compare_quantized(
    model: nn.Module,
    path: Path,
    inputs: Tensor,
    *,
    precision: str = "int8",
    alike: Alike = same_class,
    agreement: float | None = None,
    error: float | None = None,
) -> list[Check]:
    """Find how far a quantised file's outputs are from the float network's, in answers and in logits.

    Quantising costs something, and what it may cost is for the accuracy to judge. These limits are to catch a file
    that is broken: wrong ranges and saturating kernels leave far less agreement, while a sound file of a network that
    learnt something lies well inside. A trained ResNet-20 agreed on 98 % with a logit error of 0.035, MobileNetV2 with
    its 1000 classes on 95 % with 0.2.

    Args:
        model: the float network that was quantised; it is run in evaluation mode.
        path: the file.
        inputs: real ones that were not used to calibrate, ``[N, C, H, W]`` float32.
        precision: what the file is called.
        alike: the share of equal answers of two outputs, the file's first.
        agreement: the least of it; by default 0.8, and 0.5 for what was trained since or has weights of 4 bits.
        error: the largest root mean square of the logits' error, as a share of that of the logits; by default 0.3,
            and 1 for those.
    """
    default = LOOSE if precision in (TRAINED, FOUR_BITS) else SOUND
    agreement, error = default[0] if agreement is None else agreement, default[1] if error is None else error
    expected, found = network_outputs(model, inputs), outputs(path, inputs)
    _require_same_shape(found, expected)
    same = alike(found, expected)
    off = rms_error(found, expected)
    detail = f"{len(inputs)} images"
    return [
        Check(
            f"{precision} agrees with network",
            same >= agreement,
            same,
            agreement,
            "of answers the same, at least",
            detail,
        ),
        _at_most(f"{precision} logits near network's", off, error, "of the logits, root mean square", detail),
    ]


def compare_simulation(
    expected: Tensor,
    found: Tensor,
    precision: str = "int8",
    *,
    of: str = "simulation",
    whole: Tensor | None = None,
    alike: Alike = same_class,
    agreement: float = 0.9,
    error: float = 0.15,
) -> list[Check]:
    """Find how far a file's outputs in a runtime are from those of the network that simulates it.

    Both compute the same, but where floats are computed with on the way, or another runtime has other kernels, a number
    that lies between two codes may be rounded either way, and the layers that follow multiply the difference. So no
    more is allowed than a share of what quantising costs. What breaks one layer a little may still be within that;
    `compare_codes` finds it, where codes are all that there is.

    Args:
        expected: logits ``[N, classes]`` of the simulation.
        found: those of the file.
        precision: what the file is called.
        of: what it is held against is called.
        whole: logits of the float network, where they are known, to see what quantising costs.
        alike: the share of equal answers of two outputs, the file's first.
        agreement: the least of it.
        error: the largest difference's root mean square, as a share of that of the logits; less where quantising costs
            less.
    """
    _require_same_shape(found, expected)
    if whole is not None:
        error = min(error, max(ROUNDED, COST_SHARE * rms_error(expected, whole)))
    same = alike(found, expected)
    step = (expected.max() - expected.min()).clamp(min=torch.finfo(torch.float32).tiny) / 255
    differing = ((found / step).round() != (expected / step).round()).double().mean()
    detail = (
        f"{len(found)} images; {differing:.1%} of the logits differ in 8 bits, the largest difference is "
        f"{relative_error(found, expected):.3g} of the largest logit"
    )
    return [
        Check(
            f"{precision} file agrees with its {of}",
            same >= agreement,
            same,
            agreement,
            "of answers the same, at least",
            detail,
        ),
        _at_most(
            f"{precision} logits equal the {of}'s",
            rms_error(found, expected),
            error,
            "of the logits, root mean square",
            detail,
        ),
    ]


def compare_codes(expected: Tensor, found: Tensor, precision: str, *, share: float = 0.5) -> Check:
    """Find on how many images a file computes the very codes of its simulation.

    It is for networks that compute on codes from end to end, with exact sums (`edgewise.quantize.ties`): a fault of a
    single layer, however small, changes every image; what is left to the order of float operations next to none.

    Args:
        expected: logits ``[N, classes]`` of the simulation in integers.
        found: those of the file.
        precision: what the file is called.
        share: of the images, at least.
    """
    _require_same_shape(found, expected)
    furthest = (found - expected).abs().flatten(1).amax(1)
    same = (furthest <= SAME_CODES * expected.abs().max()).double().mean().item()
    name = f"{precision} file computes the codes of its simulation"
    return Check(name, same >= share, same, share, "of images, at least", f"{len(found)} images")


def compare_formats(
    source: Path,
    made: Path,
    inputs: Tensor,
    precision: str,
    kind: str,
    *,
    alike: Alike = same_class,
    limit: float = 1e-4,
) -> list[Check]:
    """Find how far a file for another runtime is from the ONNX file that it was made of, each in its runtime.

    Args:
        source: the ONNX file.
        made: the other one.
        inputs: ``[N, C, H, W]`` float32.
        precision: of both; of what computes on codes they may differ as `compare_simulation` says.
        kind: what the format is called.
        alike: the share of equal answers of two outputs.
        limit: of the error of what computes on floats.

    Files that give answers instead of outputs are held to these: lists in an order that a rounded score may change.
    """
    expected, found = outputs(source, inputs), outputs(made, inputs)
    if has_tail(source):
        same, least = alike(found, expected), ANSWERS_ALIKE[precision == "float32"]
        name = f"{kind} {precision} file gives its ONNX file's answers"
        return [Check(name, same >= least, same, least, "of them, at least", f"{len(inputs)} images")]
    if precision != "float32":
        return compare_simulation(expected, found, f"{kind} {precision}", of="ONNX file", alike=alike)
    error = relative_error(found, expected)
    return [
        _at_most(f"{kind} file equals its ONNX file", error, limit, "of the largest output", f"{len(inputs)} images")
    ]


def compare_answers(model: nn.Module, path: Path, inputs: Tensor, alike: Alike, *, least: float = 0.99) -> Check:
    """Find how many of a network's answers a file gives that makes answers of its outputs itself.

    Args:
        model: gives outputs; it is run in evaluation mode.
        path: a file with a tail (`edgewise.export.tail`).
        inputs: ``[N, C, H, W]`` float32.
        alike: the share of equal answers of two of them, or of outputs, the file's first.
        least: of it.
    """
    same = alike(outputs(path, inputs), network_outputs(model, inputs))
    return Check("file gives the network's answers", same >= least, same, least, "of them", f"{len(inputs)} images")


def compare_networks(
    a: nn.Module,
    b: nn.Module,
    inputs: Tensor,
    *,
    name: str = "networks are equal",
    limit: float = 1e-4,
    precision: Literal["float32", "float64"] = "float32",
) -> Check:
    """Find how far two networks' outputs are apart: max |a - b| / max |b|.

    Args:
        a: the one that is judged; both are run in evaluation mode on the CPU, and left as they are.
        b: the one that it is held against.
        inputs: ``[N, C, H, W]`` float32.
        name: what the check is called.
        limit: of the error; 1e-9 is a fair one in float64.
        precision: in which both compute.
    """
    dtype = torch.float64 if precision == "float64" else torch.float32
    error = relative_error(network_outputs(a, inputs, dtype), network_outputs(b, inputs, dtype))
    return _at_most(name, error, limit, "of the largest output", f"{len(inputs)} images, {precision}")


def compare_masked(sparse: nn.Module, whole: nn.Module) -> Check:
    """Count the tensors of a network that hold anything but zeros and what the other network has there."""
    before = whole.state_dict()
    wrong = [name for name, t in sparse.state_dict().items() if not bool(((t == before[name]) | (t == 0)).all())]
    return _at_most("weights are the old ones or 0", len(wrong), 0, "tensors that are not", ", ".join(wrong[:3]))


def require(checks: Iterable[Check]) -> None:
    """Go on only if every check passed.

    Raises:
        CheckFailed: names the first that did not, with its value and limit.
    """
    for check in checks:
        if not check.passed:
            on = f" ({check.detail})" if check.detail else ""
            raise CheckFailed(
                f"check failed: {check.name}: {check.value:.3g} {check.unit}, limit {check.limit:.3g}{on}"
            )


def network_outputs(model: nn.Module, inputs: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Compute a network's outputs ``[N, ...]`` on the CPU in evaluation mode, from a copy if it is not as needed."""
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    if any(tensor.device.type != "cpu" or tensor.dtype != dtype for tensor in tensors):
        model = copy.deepcopy(model).to("cpu", dtype)  # a GPU rounds its convolutions to fewer bits
    images = inputs.detach().to("cpu", dtype)
    with torch.no_grad(), evaluating(model):
        return torch.cat([forward(model, part) for part in torch.split(images, BATCH)])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return max |found - expected| / max |expected|; NaN if either holds one, and 0 for equal tensors of zeros.

    >>> relative_error(torch.tensor([1.0, -3.5]), torch.tensor([1.0, -4.0]))
    0.125
    """
    _require_same_shape(found, expected)
    error = (found - expected).abs().max()
    return 0.0 if error == 0 else (error / expected.abs().max()).item()


def rms_error(found: Tensor, expected: Tensor) -> float:
    """Return the root mean square of found - expected, divided by that of expected.

    >>> rms_error(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0]))
    0.800000011920929
    """
    _require_same_shape(found, expected)
    error = (found - expected).norm()
    return 0.0 if error == 0 else (error / expected.norm()).item()


def _require_same_shape(found: Tensor, expected: Tensor) -> None:
    """Refuse to compare what would only broadcast.

    Raises:
        CheckFailed: the shapes differ.
    """
    if found.shape != expected.shape:
        raise CheckFailed(f"the outputs have the shape {list(found.shape)}, they must have {list(expected.shape)}")


def _at_most(name: str, value: float, limit: float, unit: str, detail: str) -> Check:
    return Check(name, value <= limit, value, limit, unit, detail)  # NaN is not at most anything
