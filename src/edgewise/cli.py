"""The command. It parses, calls, and prints; everything else is imported when a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise.console import (
    bars,
    dash,
    keep_going,
    print_finished,
    print_json,
    print_rows,
    print_table,
    silence,
    step_line,
)

app = typer.Typer(
    name="edgewise",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make vision networks fit devices: prune, quantise, distil, export, prove and measure.",
)

INTERRUPTED = 130  # as a shell has it: 128 and the number of the signal

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]


# -- commands -------------------------------------------------------------------------------------------------------


def limit(of: str, example: str) -> Any:
    """Return the option of a limit."""
    return typer.Option(help=f"At most this {of}, such as {example}, or a share of the dense float network's: 60%.")


@app.command()
def compress(
    what: Annotated[
        str, typer.Argument(help="A recipe such as recipes/demo.toml; or a model, with --data and limits.")
    ],
    data: Annotated[str | None, typer.Option(help="Of a model: fashion-mnist, cifar10, pack:FOLDER ...")] = None,
    weights: Annotated[Path | None, typer.Option(help="Trained weights; without them it is trained first.")] = None,
    pretrained: Annotated[
        Path | None, typer.Option(help="Weights of other data and classes, such as ImageNet's, to train it from.")
    ] = None,
    max_latency: Annotated[str | None, limit("time for an image", "2ms")] = None,
    max_size: Annotated[str | None, limit("space on disk", "200KB")] = None,
    max_memory: Annotated[str | None, limit("memory for activations", "64KB")] = None,
    max_macs: Annotated[str | None, limit("many multiply-accumulates", "20M")] = None,
    max_params: Annotated[str | None, limit("many parameters", "100k")] = None,
    max_drop: Annotated[float | None, typer.Option(help="At most so many accuracy points may be lost.")] = None,
    runtime: Annotated[str | None, typer.Option(help="Where a model's artifact will run: onnxruntime.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads that it may use there; 1 by default.")] = None,
    images: Annotated[int | None, typer.Option(help="Of a model's training images, use so many.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out, and count, boxes that are none.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Of recovery after a model was pruned.")] = None,
    dense_epochs: Annotated[int | None, typer.Option(help="Of a model's own training, without --weights.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME by default.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: step.0.epochs=3; an empty value takes it out.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    as_json: Json = False,
) -> None:
    """Carry out a recipe, or make a model fit a budget: prune, recover, quantise, export, measure, report."""
    limits = {"latency": max_latency, "size": max_size, "memory": max_memory, "macs": max_macs, "params": max_params}
    given: dict[str, Any] = {
        "data": data,
        "weights": None if weights is None else str(weights),
        "pretrained": None if pretrained is None else str(pretrained),
        "images": images,
        "skip_bad": skip_bad or None,
        "epochs": epochs,
        "dense_epochs": dense_epochs,
        "runtime": runtime,
        "threads": threads,
        "budget": {name: value for name, value in (limits | {"drop": max_drop}).items() if value is not None} or None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    carry_out: Any = (
        by_recipe(Path(what), changes or [], given)
        if what.endswith(".toml")
        else within_budget(what, given, changes or [])
    )
    with bars(quiet=as_json) as (progress, console):

        def log(row: dict[str, Any]) -> None:
            with keep_going():
                console.print(step_line(row))

        def tell(text: str) -> None:
            with keep_going():
                console.print(text)

        told = {} if what.endswith(".toml") else {"tell": tell}
        finished = carry_out(out, resume=resume, progress=progress, log=log, **told)
    if finished.before and not as_json:
        print(f"{finished.folder}: was finished already; nothing was left to do")
    if as_json:
        print_json(finished.results)
    else:
        with keep_going():
            print_finished(console, finished)
    raise typer.Exit(0 if finished.budget_met else 3)


def by_recipe(path: Path, changes: list[str], given: dict[str, Any]) -> Callable[..., Any]:
    """Return what carries a recipe out."""
    from edgewise.errors import UserError
    from edgewise.recipe import read
    from edgewise.run import compress as carry_out

    if given.pop("skip_bad", False):
        changes = [*changes, "skip_bad=true"]
    if given:
        option = "--max-..." if (name := min(given)) == "budget" else "--" + name.replace("_", "-")
        raise UserError(f"{option} goes with a model; a recipe says it itself: change {path} or take --set")
    return partial(carry_out, read(path, changes))


def within_budget(model: str, given: dict[str, Any], changes: list[str]) -> Callable[..., Any]:
    """Return what makes a model fit a budget."""
    from edgewise.budget import COLUMNS, Limits
    from edgewise.errors import UserError
    from edgewise.plan import Wish, compress_within, run_name, training_precision

    if changes:
        raise UserError("--set changes a recipe's settings; the recipe of a model is written by the command")
    if "data" not in given:
        raise UserError(f'"{model}" is a model (a recipe ends in .toml): say what it sees with --data, such as cifar10')
    if "budget" not in given:
        raise UserError("say what it must fit: --max-latency, --max-size, --max-memory, --max-macs, --max-params")
    try:
        wish = Wish(
            model=model,
            name=run_name(model),
            precision=training_precision(),
            **given | {"budget": Limits(**given["budget"])},
        )
    except ValueError as error:
        first = str(error).partition(" ")[0]
        raise UserError(f"--{'max-' if first in COLUMNS else ''}{error}") from error
    return partial(compress_within, wish)


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help="A model's name, timm:NAME, FILE.py:FUNCTION, or a run folder.")],
    shape: Annotated[
        str | None, typer.Option("--input", help="CxHxW; a run's own, or 3x32x32.", show_default=False)
    ] = None,
    classes: Annotated[int, typer.Option(min=1, help="How many classes the network tells apart.")] = 10,
    as_json: Json = False,
) -> None:
    """Show where the cost of a network sits, layer by layer."""
    import torch

    from edgewise.cost import CostModel, cost_of
    from edgewise.graph import trace
    from edgewise.layout import RESULTS
    from edgewise.models import build
    from edgewise.page import read_run
    from edgewise.run import load

    is_run = Path(model).is_dir()
    if shape is None:
        shape = "x".join(map(str, read_run(Path(model), RESULTS)["input_shape"])) if is_run else "3x32x32"
    channels, height, width = parse_shape(shape)
    network = load(model) if is_run else build(model, classes=classes, channels=channels, size=height)
    graph = trace(network, torch.zeros(1, channels, height, width))
    total, layers = cost_of(graph), CostModel(graph).layers(graph.sizes)
    groups = [{"name": g.name, "channels": g.size, "inexact": g.inexact} for g in graph.groups]
    if as_json:
        print_json({"cost": total.to_dict(), "layers": [vars(layer) for layer in layers], "groups": groups})
        return
    from edgewise.report import format_bytes, format_count

    rows = [
        [row.name, row.kind, format_count(row.params), format_count(row.macs), format_bytes(row.activation_bytes)]
        for row in layers
    ]
    print_table(f"{model} at {shape}", ["layer", "kind", "params", "MACs", "activations"], rows, numbers=3)
    print(
        f"{format_count(total.params)} params, {format_count(total.macs)} MACs, {format_bytes(total.weight_bytes)} of "
        f"weights, {format_bytes(total.peak_activation_bytes)} peak activations, {len(groups)} prunable groups"
    )


@app.command()
def measure(
    files: Annotated[
        list[Path], typer.Argument(help="Artifacts (.onnx .xml .pte .tflite) or run folders; ratios are to the first.")
    ],
    runtime: Annotated[
        str, typer.Option(help="Runs the .onnx files: onnxruntime or openvino. The other formats have one each.")
    ] = "onnxruntime",
    threads: Annotated[int, typer.Option(help="Threads; the process is held to as many cores.")] = 1,
    seconds: Annotated[float, typer.Option(help="For how long, at least.")] = 3.0,
    shape: Annotated[str | None, typer.Option("--input", help="CxHxW, where the files leave it open.")] = None,
    as_json: Json = False,
) -> None:
    """Run artifacts in turn in one fresh process, and compare them with the first."""
    from edgewise.devices.measure import measure as run_all
    from edgewise.errors import UserError
    from edgewise.recipe import Measure
    from edgewise.report import format_bytes, format_seconds

    try:
        Measure(threads=threads, seconds=seconds)
    except ValueError as error:
        raise UserError(f"--{error}") from error
    files = [artifact_of(path) for path in files]
    with bars(quiet=as_json) as (progress, _):
        found = run_all(
            files,
            runtime=runtime,
            threads=threads,
            seconds=seconds,
            input_shape=parse_shape(shape) if shape else None,
            progress=progress,
        )
    if as_json:
        print_json([{**m.to_dict(), "ratio": m.ratio(found[0])} for m in found])
        return
    rows = [
        [
            str(path),
            f"{m.runtime} {m.version}",
            format_seconds(m.latency_s),
            f"{m.ratio(found[0]):.2f}x",
            f"{m.spread:.0%}" + (" noisy" if m.noisy else ""),
            format_bytes(m.file_bytes),
            format_bytes(m.resident_bytes),
        ]
        for path, m in zip(files, found, strict=True)
    ]
    title = f"{threads} thread(s), batch 1, {found[0].cpu}"
    print_table(title, ["file", "runtime", "latency", "speed", "spread", "size", "memory"], rows, numbers=5)


@app.command()
def quantize(
    source: Annotated[Path, typer.Argument(help="A float ONNX file.")],
    out: Annotated[Path, typer.Argument(help="What is written; the suffix says for what: .onnx .xml .pte .tflite.")],
    data: Annotated[
        str | None, typer.Option(help="Images to calibrate on: cifar10, pack:FOLDER, folder:PATH ...")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="Or a NumPy file of float32 [N, C, H, W], as the network takes them.")
    ] = None,
    scheme: Annotated[str, typer.Option(help="auto, int8_static, int8_dynamic, int8_weight, float16 ...")] = "auto",
    images: Annotated[int, typer.Option(help="How many are used; a quarter of them to compare the files.")] = 256,
    max_drop: Annotated[float, typer.Option(help="Of auto: points of agreement with the float file.")] = 1.0,
    bit_exact: Annotated[bool, typer.Option("--bit-exact", help="Same codes in OpenVINO; some time more.")] = False,
    threads: Annotated[int, typer.Option(help="Threads; the process is held to as many cores.")] = 1,
    seconds: Annotated[float, typer.Option(help="How long the files are measured, at least.")] = 3.0,
    as_json: Json = False,
) -> None:
    """Quantise an ONNX file of anybody's, hold it against the float one, and measure both."""
    from edgewise.errors import UserError
    from edgewise.quantize_file import calibration_images, quantize_file, read_inputs, settings
    from edgewise.recipe import Measure
    from edgewise.units import format_bytes, format_fraction, format_seconds

    if (data is None) == (inputs is None):
        raise UserError("give images to calibrate on: --data DATA or --inputs FILE.npy")
    config = settings(scheme, max_drop, bit_exact=bit_exact)
    try:
        Measure(threads=threads, seconds=seconds)
    except ValueError as error:
        raise UserError(f"--{error}") from error
    with bars(quiet=as_json) as (progress, _):
        given = calibration_images(source, str(data), images) if inputs is None else read_inputs(inputs)[:images]
        found = quantize_file(source, out, given, config, threads=threads, seconds=seconds, progress=progress)
    if as_json:
        print_json(found.to_dict())
        return
    small, whole = found.file, found.float_file
    print(f"scheme    {found.scheme}")
    print(f"file      {format_bytes(small.file_bytes)}, {small.file_bytes / whole.file_bytes:.1%} of the float file")
    slower = "  SLOWER than the float file" if found.speed < 1 and found.scheme != "float32" else ""
    print(f"latency   {format_seconds(small.latency_s)}, {found.speed:.2f}x the float file's speed{slower}")
    print(f"same      {format_fraction(found.agreement)} of {found.judged} images get the float file's class")
    print(f"error     {found.error:.3f} of the outputs, root mean square")
    if found.kernels is not None:
        print(f"kernels   {found.kernels.integer} layers on integers, {found.kernels.floating} on floats")
    print(f"written   {out}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder, or a step's in it.")],
    out: Annotated[Path, typer.Argument(help="The ONNX file that is written.")],
    codes: Annotated[
        bool, typer.Option("--codes", help="Keep weights of few values as 2-bit and 4-bit codes: smaller, slower.")
    ] = False,
) -> None:
    """Make an ONNX file of a run's network: of its packed file, where it has one."""
    from edgewise.errors import UserError
    from edgewise.export import network
    from edgewise.export.onnx import export as write
    from edgewise.units import format_bytes

    if out.suffix.lower() != ".onnx":
        raise UserError(f'{out}: the suffix must be .onnx; format = "..." in a recipe\'s export step writes others')
    packed = (run / network.PACKED).exists()
    model = network.load(run, packed=packed)
    write(model, network.example(run), out, codes=codes)
    print(f"read      {run / (network.PACKED if packed else network.TENSORS)}")
    print(f"written   {out}, {format_bytes(out.stat().st_size)}")


@app.command()
def check(run: Annotated[Path, typer.Argument(help="A run folder.")], as_json: Json = False) -> None:
    """Verify a run folder again: fingerprints, equality, accuracy."""
    from edgewise.check import check as verify
    from edgewise.export.verify import require

    done = []
    for item in verify(run):
        done.append(item)
        if not as_json:
            mark = "ok    " if item.passed else "FAILED"
            print(f"{mark} {item.name}: {item.value:.3g} {item.unit} (limit {item.limit:.3g}) {item.detail}")
    if as_json:
        print_json([vars(item) for item in done])
    require(done)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    html: Annotated[Path | None, typer.Option(help="Write the comparison as one page.")] = None,
    as_json: Json = False,
) -> None:
    """Show runs side by side, with the Pareto front of accuracy, size and latency."""
    from edgewise import report

    rows = report.compare(runs)
    if html is not None:
        report.write_comparison(runs, html)
    if as_json:
        print_json(rows)
        return
    cells = [
        [
            str(row["run"]),
            dash(row["accuracy"], lambda v: f"{v:.2%}"),
            dash(row["file_bytes"], report.format_bytes),
            dash(row["latency_s"], report.format_seconds),
            dash(row["macs"], report.format_count),
            "*" if row["pareto"] else "",
        ]
        for row in rows
    ]
    print_table("", ["run", "accuracy", "file", "latency", "MACs", "Pareto"], cells, numbers=5)


@app.command()
def reproduce(
    system: Annotated[str, typer.Argument(help="One of `edgewise list systems`.")],
    small: Annotated[bool, typer.Option("--small", help="The setting for two processor cores.")] = False,
    data: Annotated[str | None, typer.Option(help="Replaces the recipes' data.")] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="MODEL=FILE: weights that its dense trainings start from; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where its runs lie; runs/reproduce/NAME by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is there.")] = False,
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop at the next epoch after so many.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Keep the result in docs/results of this folder.")] = False,
    as_json: Json = False,
) -> None:
    """Run a published system and show its figures beside ours."""
    from edgewise.record_table import cells, columns, notes
    from edgewise.reproduce import record_into
    from edgewise.reproduce import reproduce as run_all

    with bars(quiet=as_json) as (progress, console):

        def log(label: str, row: dict[str, Any]) -> None:
            with keep_going():
                console.print(f"{label}: {step_line(row)}")

        found = run_all(
            system,
            out,
            small=small,
            data=data,
            weights=dict(map(parse_weights, weights or [])),
            resume=resume,
            minutes=minutes,
            progress=progress,
            log=log,
        )
    if record and not found.left:
        record_into(Path(), found)
    if as_json:
        print_json(found.record)
    else:
        print_rows(found.record["citation"], columns(found.record), cells(found.record), notes(found.record))
        if found.page:
            print(f"\nchart  {found.page}")
        if found.left:
            print(f"out of time: {found.left}{how_to_resume()}")
    raise typer.Exit(3 if found.record["refused"] else 0)


@app.command("list")
def list_names(
    what: Annotated[str, typer.Argument(help="models, data, methods, runtimes, recipes or systems.")],
    as_json: Json = False,
) -> None:
    """List what there is: models, data, methods, runtimes, recipes or systems."""
    from edgewise.catalog import CATALOG
    from edgewise.errors import UnknownName, nearest

    if what not in CATALOG:
        raise UnknownName(f'"{what}" is no list; {nearest(what, CATALOG)}')
    rows = CATALOG[what]()
    if as_json:
        print_json([{"name": name, "about": about} for name, about in rows])
    else:
        print_table("", [what, ""], [list(row) for row in rows])


# -- what was given ------------------------------------------------------------------------------------------------


def artifact_of(path: Path) -> Path:
    """Return a run folder's artifact, or the file itself."""
    from edgewise.errors import UserError
    from edgewise.layout import ARTIFACT, shipped

    if not path.is_dir():
        return path
    if not (path / ARTIFACT).is_file():
        raise UserError(f"{path}: a folder without {ARTIFACT}; give an artifact, or the folder of a run that exported")
    return shipped(path)


def parse_weights(text: str) -> tuple[str, str]:
    """Read whose weights a file holds, as in convnext_tiny=tiny.safetensors."""
    from edgewise.errors import UserError

    model, _, path = text.partition("=")
    if not model or not path:
        raise UserError(f'--weights "{text}": say of which network, as in convnext_tiny=tiny.safetensors')
    return model, path


def parse_shape(text: str) -> tuple[int, int, int]:
    """Read an input shape such as 3x32x32."""
    from edgewise.errors import UserError

    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f'--input "{text}": write channels, height and width as 3x32x32')
    channels, height, width = (int(part) for part in parts)
    return channels, height, width


# -- the end of the line --------------------------------------------------------------------------------------------


def main() -> None:
    """Run the command: errors of the user's become one line and exit code 2."""
    from edgewise.errors import EdgewiseError, StaleFile

    try:
        code = app(standalone_mode=False)  # or else typer answers in boxes of several lines
        sys.stdout.flush()
    except StaleFile as error:
        fail(str(error), error.exit_code, where_it_lies=True)
    except EdgewiseError as error:
        fail(f"{error}{how_to_resume() if disk_full(error.__cause__) else ''}", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        fail(f"interrupted{how_to_resume()}", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        silence()
        sys.exit(0)
    except OSError as error:
        place = error.filename or "the system"
        if disk_full(error):
            fail(f"{place}: the disk is full; make room{how_to_resume()}", 2)
        fail(f"{place}: {error.strerror}", 2)
    except Exception as error:
        if hasattr(error, "format_message"):  # what typer's errors have in common, from version to version
            fail(f"{error.format_message()} (see edgewise --help)", 2)
        if out_of_memory(error):
            fail(f"out of memory: {str(error).splitlines()[0] if str(error) else 'nothing more is known'}", 1)
        raise
    else:
        if code == INTERRUPTED:  # typer eats Ctrl-C in some versions
            fail(f"interrupted{how_to_resume()}", INTERRUPTED)
        sys.exit(code or 0)


def how_to_resume() -> str:
    """Say how an interrupted run goes on, where the command is one that can."""
    import shlex

    given = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return (
        f"; go on with: edgewise {shlex.join([*given, '--resume'])}"
        if given[:1] in (["compress"], ["reproduce"])
        else ""
    )


def disk_full(error: BaseException | None) -> bool:
    """Whether the system refused to store more."""
    import errno

    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch's allocator for the CPU has no error of its own."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def fail(message: str, code: int, *, where_it_lies: bool = False) -> None:
    """Print one line on stderr and leave; it names files by their final places, or by where they lie."""
    from edgewise.files import without_partial

    line = " ".join(message.split())
    print(f"edgewise: {line if where_it_lies else without_partial(line)}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
