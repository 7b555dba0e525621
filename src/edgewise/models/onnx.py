"""An ONNX file as a network of torch operators: it can be looked into, quantised and trained, and computes the same.

Floats are torch's tensors; integers, which are shapes, axes and indices, stay NumPy's, and so do floats that only say
how an operator works, so that they are constants to whatever traces the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgewise.errors import ModelError, UnsupportedOp, nearest
from edgewise.models.operators import OPERATORS

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Step:
    """An operator: what it reads and writes by name, and how it computes.

    Args:
        op_type: ONNX's name of it.
        inputs: the names of what it reads; "" for an input that is left out.
        outputs: the names of what it writes.
        attributes: its settings.
        freed: what nobody reads any more after it.
    """

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    freed: tuple[str, ...]


class OnnxNetwork(nn.Module):
    """Runs the operators of an ONNX graph in torch.

    ``taps`` are modules by the names of tensors: what a tap makes of a tensor takes its place, as soon as it is there.

    Args:
        graph: with one input and one output. Its float constants become parameters, under their names.

    Raises:
        ModelError: there is more than one input or output, or an operator reads what nothing makes.
        UnsupportedOp: an operator is not known.
    """

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__()
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            counts = f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
            raise ModelError(f"the file has {counts}; it must have one of each")
        self.input, self.output = str(graph.inputs[0].name), str(graph.outputs[0].name)
        self.steps = tuple(_steps(graph))
        self.constants: dict[str, np.ndarray[Any, Any]] = {}
        self.weights, self.taps = nn.ParameterDict(), nn.ModuleDict()
        self.floats: list[str] = []
        settings = _settings(graph)
        for name, array in _constants(graph):
            if np.issubdtype(array.dtype, np.floating) and name not in settings:
                self.floats.append(name)
                self.weights[_key(name)] = nn.Parameter(torch.from_numpy(array.astype(np.float32)))
            else:
                self.constants[name] = array
        made = {"", self.input, *self.floats, *self.constants, *(name for step in self.steps for name in step.outputs)}
        for step in self.steps:
            if missing := set(step.inputs) - made:
                raise ModelError(f'{step.op_type} reads the tensor "{min(missing)}", and nothing makes it')

    def tap(self, name: str, module: nn.Module) -> None:
        """Let a module see the tensor of that name, and replace it."""
        self.taps[_key(name)] = module

    def untap(self, name: str) -> None:
        """Let the tensor of that name be as it is again."""
        self.taps.pop(_key(name))

    def tapped(self, name: str) -> nn.Module | None:
        """Return the module that sees the tensor of that name, if there is one."""
        return self.taps[_key(name)] if _key(name) in self.taps else None  # noqa: SIM401 - a ModuleDict has no get

    def weight(self, name: str) -> nn.Parameter:
        """Return the constant of that name."""
        found: nn.Parameter = self.weights[_key(name)]
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Run every operator in the file's order, on ``[N, C, H, W]`` float32."""
        values: dict[str, Any] = {"": None, **self.constants}
        self._keep(values, self.input, x)
        for step in self.steps:
            for name in step.inputs:
                if name not in values:  # a weight: rounded when it is needed, so that a tap before may change it
                    self._keep(values, name, self.weight(name))
            found = OPERATORS[step.op_type](*(values[name] for name in step.inputs), **step.attributes)
            for name, value in zip(step.outputs, found if isinstance(found, tuple) else (found,), strict=False):
                self._keep(values, name, value)
            for name in step.freed:
                values.pop(name, None)
        output: Tensor = values[self.output]
        return output

    def _keep(self, values: dict[str, Any], name: str, value: Any) -> None:
        values[name] = self.taps[_key(name)](value) if _key(name) in self.taps else value


def _key(name: str) -> str:
    """Return the name of a tensor as torch takes one: it keeps dots for itself."""
    return name.replace(".", "/")


def _steps(graph: ir.Graph) -> Iterator[Step]:
    """Translate the operators of a graph, in their order."""
    nodes = [node for node in graph if node.op_type != "Constant"]
    last = {value.name: place for place, node in enumerate(nodes) for value in node.inputs if value is not None}
    kept = {value.name for value in graph.outputs}
    for place, node in enumerate(nodes):
        name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        if name not in OPERATORS:
            raise UnsupportedOp(f'the operator "{name}" is not known; {nearest(name, OPERATORS)}')
        inputs = tuple("" if value is None else str(value.name) for value in node.inputs)
        outputs = tuple(str(value.name) for value in node.outputs)
        freed = {name for name in (*inputs, *outputs) if name and name not in kept and last.get(name, place) == place}
        attributes = {name: _plain(attribute) for name, attribute in node.attributes.items()}
        yield Step(node.op_type, inputs, outputs, attributes, tuple(sorted(freed)))


def _settings(graph: ir.Graph) -> set[str]:
    """Name the inputs that are settings: they hold no numbers that an image's are combined with."""
    places = {"Resize": (1, 2), "Pad": (2,), "Clip": (1, 2)}
    nodes = [(node, places[node.op_type]) for node in graph if node.op_type in places]
    read = [node.inputs[place] for node, all_places in nodes for place in all_places if place < len(node.inputs)]
    return {str(value.name) for value in read if value is not None}


def _constants(graph: ir.Graph) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield the constants by name: initialisers, and what Constant nodes hold."""
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            yield str(name), value.const_value.numpy()
    for node in graph:
        if node.op_type == "Constant":
            (attribute,) = node.attributes.values()
            held = attribute.value.numpy() if hasattr(attribute.value, "numpy") else np.array(attribute.value)
            yield str(node.outputs[0].name), held.astype(np.float32) if held.dtype == np.float64 else held


def _plain(attribute: Any) -> Any:
    """Return an attribute's value as Python has it."""
    value = attribute.value
    return value.numpy() if hasattr(value, "numpy") else list(value) if isinstance(value, tuple) else value
