"""Reading an ONNX file of anybody's: whole, and in the operators' present meaning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.errors import ModelError, UserError, one_line
from edgewise.export.quiet import quietly

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 20  # the first with Gelu; what `edgewise.export.onnx.export` writes
CODES_OPSET = {4: 21, 2: 25}  # since when codes of so many bits exist
GROUPS_OPSET = 21  # since then GroupNormalization has a scale for each channel


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


def allow_codes_(graph: ir.Graph, bits: int) -> None:
    """Let a graph hold codes of 4 or 2 bits: state an opset that knows them.

    Raises:
        ModelError: an operator of it would mean something else there.
    """
    stated, needed = graph.opset_imports.get("", OPSET), CODES_OPSET[bits]
    if stated < GROUPS_OPSET and any(node.op_type == "GroupNormalization" for node in graph):
        raise ModelError(
            f"{bits}-bit codes need opset {needed}, where GroupNormalization has other scales than in {stated}: "
            "export the network in that opset"
        )
    graph.opset_imports[""] = max(stated, needed)


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
