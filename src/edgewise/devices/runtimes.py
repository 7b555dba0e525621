"""What can run an artifact: each runtime behind one small protocol, its package imported when it is needed.

A session takes and gives arrays of the types that its file holds, so that what is timed is the runtime and nothing of
ours; `infer` is for those who have float images, whatever the file takes.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgewise.errors import MeasurementFailed, MissingExtra, UnknownName, UserError, nearest, one_line

Array = np.ndarray[Any, Any]
Dims = tuple[int | str | None, ...]  # None or a name where a file leaves an axis open

ERRORS_ONLY = 3  # ONNX Runtime's severity
ONNX_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
}
ROUNDING_KERNELS = "executorch.kernels.quantized"  # of ExecuTorch: round to codes where XNNPACK has no kernel
# ExecuTorch's numbers for types, torch's own: c10/core/ScalarType.h
TORCH_DTYPES = {0: "uint8", 1: "int8", 2: "int16", 5: "float16", 6: "float32", 7: "float64"}


@dataclass(frozen=True)
class TensorSpec:
    """An input or output as its file states it.

    Args:
        dims: its axes; None or a name for one that is left open.
        dtype: as numpy calls it; the runtime's own word for a type that images do not have.
        scale: of integer codes, whose numbers are ``scale * (code - zero_point)``; 0 where they are no codes.
        zero_point: the code of zero.
    """

    dims: Dims
    dtype: str
    scale: float = 0.0
    zero_point: int = 0

    def encode(self, numbers: Array) -> Array:
        """Return what the file takes for floats: codes, or floats of its width.

        Raises:
            ValueError: it takes integers, and no scale says what they mean.

        >>> TensorSpec((3,), "int8", scale=0.5, zero_point=-128).encode(np.float32([0, 1.2, 900]))
        array([-128, -126,  127], dtype=int8)
        """
        if self.scale:
            limits = np.iinfo(self.dtype)
            codes = np.rint(numbers / np.float32(self.scale)) + self.zero_point
            return np.asarray(np.clip(codes, limits.min, limits.max), self.dtype)
        if not self.dtype.startswith("float"):
            raise ValueError(f"an input is {self.dtype} without a scale, and floats were given")
        return np.asarray(numbers, self.dtype)

    def decode(self, values: Array) -> Array:
        """Return the float32 numbers that codes stand for, and anything else as it is.

        >>> TensorSpec((2,), "int8", scale=0.5, zero_point=-128).decode(np.int8([-128, 127]))
        array([  0. , 127.5], dtype=float32)
        """
        if not self.scale:
            return values
        return np.asarray((values.astype(np.float32) - self.zero_point) * np.float32(self.scale))


class Session(Protocol):
    """A loaded artifact, ready to run.

    Attributes:
        inputs: what it takes.
        outputs: what it gives.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __call__(self, *arrays: Array) -> Sequence[Array]:
        """Run it on one array for each input, of the types they state; return one for each output.

        Raises:
            Exception: the runtime's own, for shapes and types that are not the file's.
        """


class OnnxRuntimeSession:
    """An ONNX file in ONNX Runtime on the CPU, with all of its graph optimisations."""

    def __init__(self, package: Any, path: Path, threads: int | None) -> None:
        options = package.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        self._session = package.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._names = [i.name for i in inputs]
        self.inputs, self.outputs = (
            tuple(TensorSpec(tuple(each.shape), ONNX_DTYPES.get(each.type, each.type)) for each in tensors)
            for tensors in (inputs, outputs)
        )

    def __call__(self, *arrays: Array) -> Sequence[Array]:
        """Run it."""
        found: list[Array] = self._session.run(None, dict(zip(self._names, arrays, strict=True)))
        return found


class OpenVinoSession:
    """An ONNX file, or OpenVINO's own, in OpenVINO on the CPU.

    A file with open axes is compiled for the shapes that it is first run on, as one made for them would be, and again
    when they change.
    """

    def __init__(self, package: Any, path: Path, threads: int | None) -> None:
        self._core = package.Core()
        self._settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # or else a processor with bf16 rounds float files to it, unasked
        }
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        self._model = self._core.read_model(str(path))
        self.inputs, self.outputs = (
            tuple(_openvino_spec(port) for port in ports) for ports in (self._model.inputs, self._model.outputs)
        )
        self._shapes: list[tuple[int, ...]] = []
        if not self._model.is_dynamic():
            self._compile([tuple(port.shape) for port in self._model.inputs])

    def __call__(self, *arrays: Array) -> Sequence[Array]:
        """Run it."""
        if (shapes := [array.shape for array in arrays]) != self._shapes:
            self._compile(shapes)
        # Handing the arrays to `infer` costs 40 µs in OpenVINO's Python, four times the rest of a small network's call.
        for number, array in enumerate(arrays):
            np.copyto(self._request.get_input_tensor(number).data, array, casting="no")
        self._request.infer(share_outputs=True)
        return [self._request.get_output_tensor(number).data.copy() for number in range(len(self.outputs))]

    def _compile(self, shapes: list[tuple[int, ...]]) -> None:
        """Compile it for inputs of these shapes.

        Raises:
            ValueError: they are not the file's; OpenVINO would change the network to take them.
        """
        for spec, shape in zip(self.inputs, shapes, strict=True):
            if not fits(spec.dims, shape):
                raise ValueError(f"an input is {shown(shape)}, the file takes {shown(spec.dims)}")
        self._model.reshape({number: list(shape) for number, shape in enumerate(shapes)})
        compiled = self._core.compile_model(self._model, "CPU", self._settings)
        self._request, self._shapes = compiled.create_infer_request(), shapes


class ExecuTorchSession:
    """The method ``forward`` of an ExecuTorch program, on whichever backends it was lowered to."""

    def __init__(self, package: Any, path: Path, threads: int | None) -> None:
        if threads is not None:
            _size_executorch_pool(threads)
        importlib.import_module(ROUNDING_KERNELS)
        # The method is a view into the program, which is kept for as long.
        self._program = package.Runtime.get().load_program(str(path))
        self._method = self._program.load_method("forward")
        about = self._method.metadata
        self.inputs = tuple(_executorch_spec(about.input_tensor_meta(i)) for i in range(about.num_inputs()))
        self.outputs = tuple(_executorch_spec(about.output_tensor_meta(i)) for i in range(about.num_outputs()))
        if self._takes_fewer():
            self.inputs = tuple(
                replace(spec, dims=(*(f"at most {dim}" for dim in spec.dims[:1]), *spec.dims[1:]))
                for spec in self.inputs
            )

    def __call__(self, *arrays: Array) -> Sequence[Array]:
        """Run it."""
        import torch

        return [output.numpy() for output in self._method.execute([torch.from_numpy(array) for array in arrays])]

    def _takes_fewer(self) -> bool:
        """Find whether the batch axis is open: a program states only the most that each of its axes may be."""
        most = [tuple(_length(dim) or 1 for dim in spec.dims) for spec in self.inputs]
        single = [(1, *shape[1:]) if shape else () for shape in most]
        if single == most:
            return False
        try:
            self(*(np.zeros(shape, spec.dtype) for shape, spec in zip(single, self.inputs, strict=True)))
        except (RuntimeError, TypeError):  # it takes no other, or its type is none of numpy's
            return False
        return True


class LiteRtSession:
    """A TensorFlow Lite file in LiteRT on the CPU, with its XNNPACK kernels."""

    def __init__(self, package: Any, path: Path, threads: int | None) -> None:
        self._interpreter = package.Interpreter(model_path=str(path), num_threads=threads or os.cpu_count())
        self._interpreter.allocate_tensors()
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._inputs, self._outputs = ([each["index"] for each in details] for details in (inputs, outputs))
        self._shapes = [tuple(each["shape"]) for each in inputs]
        self.inputs, self.outputs = (tuple(_litert_spec(each) for each in details) for details in (inputs, outputs))

    def __call__(self, *arrays: Array) -> Sequence[Array]:
        """Run it."""
        if (shapes := [array.shape for array in arrays]) != self._shapes:
            for index, shape in zip(self._inputs, shapes, strict=True):
                self._interpreter.resize_tensor_input(index, shape, strict=True)
            self._interpreter.allocate_tensors()
            self._shapes = shapes
        for index, array in zip(self._inputs, arrays, strict=True):
            self._interpreter.set_tensor(index, array)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]


@dataclass(frozen=True)
class Runtime:
    """Something that runs artifacts.

    Args:
        title: as its makers write it.
        about: where it runs what, in a few words.
        suffixes: of the files that it takes.
        module: what is imported of its package.
        extra: of edgewise's, which installs it; None for what is always there.
        load: makes a session of the module, a file and a number of threads, None for one each core.
    """

    title: str
    about: str
    suffixes: tuple[str, ...]
    module: str
    extra: str | None
    load: Callable[[Any, Path, int | None], Session]

    @property
    def installed(self) -> bool:
        """Whether its package is there; it is not imported."""
        return importlib.util.find_spec(self._package) is not None

    @property
    def install(self) -> str:
        """The line that installs it."""
        return f"pip install 'edgewise[{self.extra}]'" if self.extra else f"pip install {self._package}"

    def imported(self) -> Any:
        """Return its module.

        Raises:
            MissingExtra: it is not installed, or cannot be imported.
        """
        try:
            return importlib.import_module(self.module)
        except Exception as error:  # a library that does not load is an OSError, and some packages raise their own
            missing = isinstance(error, ModuleNotFoundError) and error.name in (self._package, self.module)
            how = "is not installed" if missing else f"cannot be imported ({one_line(error)})"
            raise MissingExtra(f"{self.title} {how}: {self.install}") from error

    def version(self) -> str:
        """Return its version; its own code is in memory then.

        Raises:
            MissingExtra: it is not installed, or cannot be imported.
        """
        module = self.imported()
        try:
            return version(self._package)
        except PackageNotFoundError:  # the module comes in a package of another name
            return str(module.__version__)

    @property
    def _package(self) -> str:
        return self.module.partition(".")[0]


def runtime_of(path: Path, wanted: str = "onnxruntime") -> str:
    """Return the name of the runtime that runs a file: the wanted one, or the only one that takes such files.

    Raises:
        UnknownName: there is no such runtime.
        UserError: none takes such files, or several do and the wanted one does not.

    >>> runtime_of(Path("net.onnx")), runtime_of(Path("net.onnx"), "openvino"), runtime_of(Path("net.tflite"))
    ('onnxruntime', 'openvino', 'litert')
    """
    if wanted not in RUNTIMES:
        raise UnknownName(f'runtime "{wanted}" is unknown; {nearest(wanted, RUNTIMES)}')
    able = [name for name, runtime in RUNTIMES.items() if path.suffix.lower() in runtime.suffixes]
    if wanted in able or len(able) == 1:
        return wanted if wanted in able else able[0]
    if able:
        raise UserError(f"{path}: {wanted} does not take {path.suffix} files, these do: {', '.join(able)}")
    known = [f"{suffix} ({name})" for name, runtime in RUNTIMES.items() for suffix in runtime.suffixes]
    raise UserError(f'{path}: no runtime takes files with the suffix "{path.suffix}"; known: {", ".join(known)}')


def open_session(path: Path, runtime: str = "onnxruntime", threads: int | None = None) -> Session:
    """Load a file into a runtime.

    Args:
        path: the file.
        runtime: a name of `RUNTIMES` that takes such files.
        threads: how many threads it may use; by default one for each core.

    Raises:
        UserError: there is no such file.
        MissingExtra: the runtime is not installed.
        MeasurementFailed: the runtime cannot load it; the message holds its own, in one line.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    chosen = RUNTIMES[runtime]
    module = chosen.imported()
    try:
        return chosen.load(module, path, threads)
    except Exception as error:  # the runtimes' classes have only Exception in common
        raise MeasurementFailed(f"{path}: {chosen.title} cannot load it: {one_line(error)}") from error


def infer(session: Session, images: Array) -> Array:
    """Run float images through a session, whatever it takes and gives.

    Args:
        session: of one input; one of codes is given codes, one of channels last is given them last.
        images: ``[N, C, H, W]`` float32.

    Returns:
        Its first output, ``[N, ...]`` as the file lays it out, float32 if it is codes.

    Raises:
        ValueError: the session has several inputs, or one of integers that no scale explains.
        Exception: the runtime's own, for images that the file does not take.
    """
    if len(session.inputs) != 1:
        raise ValueError(f"it has {len(session.inputs)} inputs, and one is given")
    (spec,) = session.inputs
    if channels_last(spec.dims, images.shape[1:]):
        images = np.moveaxis(images, 1, -1)
    return session.outputs[0].decode(session(spec.encode(np.ascontiguousarray(images)))[0])


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files that an artifact consists of: OpenVINO keeps the weights beside the network.

    >>> [file.name for file in files_of(Path("net.xml"))]
    ['net.xml', 'net.bin']
    """
    return (path, path.with_suffix(".bin")) if path.suffix.lower() == ".xml" else (path,)


def fits(dims: Sequence[int | str | None], shape: Sequence[int]) -> bool:
    """Whether an array of a shape has the axes that a file states.

    >>> fits(("batch", 3, 8, 8), (5, 3, 8, 8)), fits((None, 3, 8, 8), (5, 3, 9, 8)), fits((1, 10), (1, 10, 1))
    (True, False, False)
    """
    return len(dims) == len(shape) and all(
        stated in (None, length) for stated, length in zip(map(_length, dims), shape, strict=True)
    )


def channels_last(dims: Sequence[int | str | None], image: Sequence[int]) -> bool:
    """Whether a file takes images ``(C, H, W)`` as ``(H, W, C)`` only.

    >>> channels_last((1, 96, 64, 3), (3, 96, 64)), channels_last((1, 3, 96, 64), (3, 96, 64))
    (True, False)
    """
    return not fits(dims[1:], image) and fits(dims[1:], (*image[1:], *image[:1]))


def shown(dims: Sequence[int | str | None]) -> str:
    """Write dims as people read them.

    >>> shown(("batch", None, 8))
    '[batch, ?, 8]'
    """
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in dims) + "]"


def _length(dim: int | str | None) -> int | None:
    """Return an axis's length, None if it is open: runtimes write a name, nothing, 0 or -1 then."""
    return dim if isinstance(dim, int) and dim > 0 else None


def _openvino_spec(port: Any) -> TensorSpec:
    dims = tuple(dim.get_length() if dim.is_static else None for dim in port.partial_shape)
    return TensorSpec(dims, port.get_element_type().to_dtype().name)


def _executorch_spec(about: Any) -> TensorSpec:
    return TensorSpec(tuple(about.sizes()), TORCH_DTYPES.get(about.dtype(), f"torch's type {about.dtype()}"))


def _litert_spec(details: dict[str, Any]) -> TensorSpec:
    dims = tuple(int(dim) if dim > 0 else None for dim in details["shape_signature"])
    scale, zero_point = details["quantization"]
    return TensorSpec(dims, np.dtype(details["dtype"]).name, float(scale), int(zero_point))


@lru_cache(maxsize=1)  # again only where the number changes: what is loaded keeps the pool that was there
def _size_executorch_pool(threads: int) -> None:
    """Give ExecuTorch's kernels a pool of so many threads: its own has one for each core, pinned or not."""
    importlib.import_module("executorch.extension.pybindings.portable_lib")._unsafe_reset_threadpool(threads)


RUNTIMES: dict[str, Runtime] = {
    "onnxruntime": Runtime(
        title="ONNX Runtime",
        about="ONNX Runtime on the CPU, for .onnx files",
        suffixes=(".onnx",),
        module="onnxruntime",
        extra=None,
        load=OnnxRuntimeSession,
    ),
    "openvino": Runtime(
        title="OpenVINO",
        about="OpenVINO on the CPU, for .xml files with their .bin, and .onnx files",
        suffixes=(".xml", ".onnx"),
        module="openvino",
        extra="openvino",
        load=OpenVinoSession,
    ),
    "executorch": Runtime(
        title="ExecuTorch",
        about="ExecuTorch on the CPU, for .pte files",
        suffixes=(".pte",),
        module="executorch.runtime",
        extra="executorch",
        load=ExecuTorchSession,
    ),
    "litert": Runtime(
        title="LiteRT",
        about="LiteRT on the CPU, for .tflite files",
        suffixes=(".tflite",),
        module="ai_edge_litert.interpreter",
        extra="litert",
        load=LiteRtSession,
    ),
}
