"""Which tensors of a prepared graph are stored as codes, and which operators compute on them.

Layers compute on codes. The operators around them follow where their largest input is made of codes anyway: an
addition between two convolutions does, one between two layer normalisations would only pay for conversions. A tensor
that some operator needs as codes is codes for all that read it, in every runtime; one that a matrix product makes for
operators on floats alone stays float, since the integer kernels can give out either.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgewise.errors import UnknownName, nearest
from edgewise.export.edit import attribute, known, only_reader, operand, readers
from edgewise.quantize.prepare import layers, output_axis

if TYPE_CHECKING:
    import onnx_ir as ir

# What ONNX Runtime's CPU kernels, OpenVINO and XNNPACK compute on codes beside layers.
ARITHMETIC = (
    *("Add", "Mul", "MatMul", "Concat", "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid"),
    *("AveragePool", "GlobalAveragePool"),
)
# What moves codes about, or picks some of them: the scale stays.
MOVES = (
    *("MaxPool", "Split", "Slice", "Gather", "Pad", "Resize", "Reshape", "Flatten", "Transpose"),
    *("Squeeze", "Unsqueeze", "Identity"),
)
CLAMPS = ("Relu", "Clip")  # the range of the codes does what they do
GATE_STEPS = 256  # of a hard sigmoid's codes from 0 to 1: the highest stands for 255/256
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
TO_FLOAT = ("Gemm", "MatMul")  # their integer kernels can give out floats
STORED = ("ConvTranspose",)  # no integer kernel in ONNX Runtime: its weights are stored as codes and used as floats


@dataclass(frozen=True)
class Layer:
    """An operator with constant weights, by the names of its tensors.

    Args:
        name: of the operator.
        op_type: ONNX's name of it.
        input, output: what it reads and makes.
        weight: its weights ``[K, C / groups, *kernel]``, ``[K, C]`` or ``[C, K]``.
        bias: ``[K]``; "" for none.
        axis: which dimension of the weights the output channels are.
        shape: of the weights.
    """

    name: str
    op_type: str
    input: str
    output: str
    weight: str
    bias: str
    axis: int
    shape: tuple[int, ...]

    @property
    def channel_axis(self) -> int:
        """Which dimension of its output the channels are: ``[N, K, *space]`` of a convolution, ``[..., K]``."""
        return 1 if self.op_type == "Conv" else -1


@dataclass
class Sites:
    """What is stored as codes.

    Args:
        layers: those that compute on codes, by name, in the graph's order.
        stored: those whose weights are stored as codes and computed with as floats.
        operators: all operators that compute on codes or move them.
        scales: for each tensor of codes, the tensor whose scale and zero point it has: its own, or what was moved.
        clamps: those of the operators that nothing is left to do for, if the codes' range ends where they clamp.
        gates: what hard sigmoids make of codes: their own codes reach from 0 to just below 1, whatever is seen.
        whole: whether nothing that is computed on floats becomes codes again.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    stored: dict[str, Layer] = field(default_factory=dict)
    operators: list[ir.Node] = field(default_factory=list)
    scales: dict[str, str] = field(default_factory=dict)
    clamps: list[ir.Node] = field(default_factory=list)
    gates: list[str] = field(default_factory=list)
    whole: bool = True

    @property
    def observed(self) -> list[str]:
        """The tensors whose range must be known."""
        return [name for name, source in self.scales.items() if name == source]


def find_sites(graph: ir.Graph, exclude: Collection[str] = ()) -> Sites:
    """Decide what is stored as codes.

    Args:
        graph: what `edgewise.quantize.prepare.prepare` made.
        exclude: the names of layers that shall compute on floats.

    Raises:
        UnknownName: there is no layer of such a name.
    """
    found = Sites()
    named = {str(node.name): _layer(node) for node in layers(graph)}
    for name in exclude:
        if name not in named:
            raise UnknownName(f'exclude = "{name}": there is no such layer; {nearest(name, named)}')
    nodes = list(graph)
    on_codes: set[ir.Node] = set()
    for node in nodes:
        layer = named.get(str(node.name)) if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") else None
        if layer is not None and layer.name not in exclude:
            (found.stored if node.op_type in STORED else found.layers)[layer.name] = layer
        if (layer is not None and layer.name in found.layers) or (layer is None and _follows(node, on_codes)):
            on_codes.add(node)
    _leave_floats(nodes, on_codes)
    found.operators = [node for node in nodes if node in on_codes]
    found.clamps = [node for node in found.operators if node.op_type in CLAMPS and _before(node, on_codes) is not None]
    found.gates = [str(node.outputs[0].name) for node in found.operators if node.op_type == "HardSigmoid"]
    found.whole = not any(
        reader in on_codes
        for node in nodes
        if node not in on_codes
        for value in node.outputs
        for reader in readers(value)
    )
    for node in found.operators:
        moved = node.inputs[0] if node.op_type in MOVES else None
        for value in () if node in found.clamps else operands(node):
            found.scales.setdefault(str(value.name), str(value.name))
        if _clamp_behind(node, on_codes) is not None or _stays_float(node, on_codes):
            continue
        for value in node.outputs:
            source = str(value.name) if moved is None else found.scales[str(moved.name)]
            found.scales.setdefault(str(value.name), source)
    return found


def _layer(node: ir.Node) -> Layer:
    weight, bias = node.inputs[1], operand(node, 2)
    return Layer(
        name=str(node.name),
        op_type=node.op_type,
        input=str(node.inputs[0].name),  # type: ignore[union-attr]
        output=str(node.outputs[0].name),
        weight=str(weight.name),  # type: ignore[union-attr]
        bias="" if bias is None else str(bias.name),
        axis=output_axis(node),
        shape=known(weight).shape,
    )


def _follows(node: ir.Node, on_codes: set[ir.Node]) -> bool:
    """Say whether an operator computes on codes because what it reads is codes, or most of it."""
    if node.op_type not in (*ARITHMETIC, *MOVES) or not _has_kernel(node):
        return False
    return max(operands(node), key=_numbers).producer() in on_codes


def _has_kernel(node: ir.Node) -> bool:
    """Say whether an operator's settings are such that codes can be computed on."""
    if node.op_type == "HardSigmoid":
        return float(GATE_STEPS * attribute(node, "beta", 0.5)).is_integer()
    if node.op_type == "AveragePool":
        return averages_codes(node)
    if node.op_type == "Resize":
        return bool(attribute(node, "mode", "nearest") == "nearest")
    if node.op_type == "Pad":
        value = known(operand(node, 2))
        return attribute(node, "mode", "constant") != "constant" or value is None or not value.any()
    return True


def averages_codes(node: ir.Node) -> bool:
    """Say whether a pooling of codes is right: ONNX Runtime's kernel may count what lies beyond the padding."""
    return not (attribute(node, "ceil_mode", 0) and attribute(node, "count_include_pad", 0))


def operands(node: ir.Node) -> list[ir.Value]:
    """List the tensors that an operator computes on, its weights and settings apart."""
    every = node.op_type in ("Add", "Mul", "Concat") or (node.op_type == "MatMul" and known(node.inputs[1]) is None)
    return [value for value in (node.inputs if every else node.inputs[:1]) if value is not None]


def _numbers(value: ir.Value) -> int:
    """Count a tensor's numbers for one image, as far as they are known."""
    count = 1
    for length in list(value.shape or [])[1:]:
        count *= length if isinstance(length, int) else 1
    return count


def _leave_floats(nodes: list[ir.Node], on_codes: set[ir.Node]) -> None:
    """Take away what would turn a matrix product into codes only for operators on floats to read.

    And what puts the network's outputs side by side: one scale for all would be that of the largest.
    """
    for node in reversed(nodes):
        if node.op_type == "Concat" and node.outputs[0].is_graph_output() and not readers(node.outputs[0]):
            on_codes.discard(node)
        if node in on_codes and node.op_type in (*CLAMPS, *VIEWS, "LeakyRelu", "Sigmoid"):
            source = node.inputs[0]
            producer = None if source is None else source.producer()
            alone = source is not None and only_reader(source) is node
            if alone and producer is not None and _may_stay_float(producer) and _read_as_floats(node, on_codes):
                on_codes.discard(node)


def _may_stay_float(node: ir.Node) -> bool:
    """Say whether an operator can give out floats, or is a view of what can."""
    if node.op_type in VIEWS:
        source = node.inputs[0]
        producer = None if source is None else source.producer()
        return producer is not None and _may_stay_float(producer)
    return node.op_type in TO_FLOAT


def _read_as_floats(node: ir.Node, on_codes: set[ir.Node]) -> bool:
    return not any(reader in on_codes for value in node.outputs for reader in readers(value))


def _stays_float(node: ir.Node, on_codes: set[ir.Node]) -> bool:
    """Say whether an operator on codes gives out floats."""
    return node.op_type in TO_FLOAT and _read_as_floats(node, on_codes)


def _clamp_behind(node: ir.Node, on_codes: set[ir.Node]) -> ir.Node | None:
    """Return the operator that clamps what another one makes, if nobody else reads that."""
    if node.op_type in MOVES or len(node.outputs) != 1:
        return None
    reader = only_reader(node.outputs[0])
    return reader if reader is not None and reader.op_type in CLAMPS and reader in on_codes else None


def _before(clamp: ir.Node, on_codes: set[ir.Node]) -> ir.Node | None:
    """Return the operator whose output's range a clamp is part of."""
    source = clamp.inputs[0]
    producer = None if source is None else source.producer()
    return producer if producer in on_codes and producer is not None and _clamp_behind(producer, on_codes) else None
