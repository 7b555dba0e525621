"""Reading an ONNX file of anybody's: whole, and in the operators' present meaning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.errors import ModelError, UserError, one_line
from edgewise.export.quiet import quietly

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 20  # the first with Gelu; what `edgewise.export.onnx.export` writes
FOUR_BITS_OPSET = 21  # since then 4-bit codes exist, and GroupNormalization has a scale for each channel


def read(path: Path) -> ir.Model:
    """Read an ONNX file; one of an older opset is converted, since operators of one name meant other things then.

    Raises:
        UserError: there is no such file.
        ModelError: it is no ONNX file, the file with its weights is missing, or its opset cannot be converted.
    """
    import onnx_ir as ir

    try:
        with quietly():
            network = ir.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ModelError(f"{path}: it is a folder, not an ONNX file") from None
    except Exception as error:  # whatever protobuf makes of bytes that are none of its own
        raise ModelError(f"{path}: no ONNX file: {one_line(error)}") from error
    if not len(network.graph):
        raise ModelError(f"{path}: no ONNX file: it holds no operators")
    try:
        network = ir.external_data.load_to_model(network)
    except Exception as error:  # no file, no right to read it, or one too short
        raise ModelError(f"{path}: the file beside it that holds its weights: {one_line(error)}") from error
    return _converted(network, path)


def allow_four_bits_(graph: ir.Graph) -> None:
    """Let a graph hold 4-bit codes: state an opset that knows them.

    Raises:
        ModelError: an operator of it would mean something else there.
    """
    if (stated := graph.opset_imports.get("", OPSET)) >= FOUR_BITS_OPSET:
        return
    if any(node.op_type == "GroupNormalization" for node in graph):
        raise ModelError(
            f"4-bit codes need opset {FOUR_BITS_OPSET}, where GroupNormalization has other scales than in {stated}: "
            "export the network in that opset"
        )
    graph.opset_imports[""] = FOUR_BITS_OPSET


def _converted(network: ir.Model, path: Path) -> ir.Model:
    """Return the network in the opset that everything here is written for, or a later one that it has."""
    import onnx_ir as ir
    from onnx import version_converter

    stated = network.graph.opset_imports.get("", 1)
    if stated >= OPSET:
        return network
    try:
        with quietly():
            return ir.from_proto(version_converter.convert_version(ir.to_proto(network), OPSET))
    except Exception as error:  # the converter's own, for operators that it does not know
        raise ModelError(
            f"{path}: its opset {stated} cannot be converted to {OPSET}, export it in that one: {one_line(error)}"
        ) from error
