"""Networks that are not ours: timm's, and the user's own."""

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

import torch
from torch import nn

from edgewise.errors import MissingExtra, ModelError, UnknownName, nearest, one_line

INSTALL = 'pip install "edgewise[timm]"'

# -- timm -----------------------------------------------------------------------------------------------------------


def from_timm(name: str, *, classes: int, channels: int, size: int) -> nn.Module:
    """Build a network of timm's with fresh weights.

    Args:
        name: as in ``timm.list_models()``.
        size: told to the networks that are made for one size, such as vision transformers.

    Raises:
        MissingExtra: timm is not installed or cannot be imported.
        UnknownName: timm has no such network.
        ModelError: timm cannot build it so; its own message.
    """
    timm = _import_timm()
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=1)
        hint = f'did you mean "timm:{close[0]}"?' if close else "timm.list_models() lists them"
        raise UnknownName(f'timm {timm.__version__} has no network called "{name}"; {hint}')
    try:
        one_size = {"img_size": size} if timm.models.get_pretrained_cfg(name).fixed_input_size else {}
        model = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels, **one_size)
    except Exception as error:
        raise ModelError(f'timm could not build "{name}": {one_line(error)}') from error
    assert isinstance(model, nn.Module)
    return model


def _import_timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name in ("timm", "torchvision"):
            raise MissingExtra(f"networks called timm:NAME need {error.name}: {INSTALL}") from error
        raise MissingExtra(_broken(error)) from error
    except Exception as error:  # torchvision raises RuntimeError where it does not fit torch
        raise MissingExtra(_broken(error)) from error
    return timm


def _broken(error: Exception) -> str:
    return (
        f"timm is installed but cannot be imported ({one_line(error)}): install the torchvision that was built for "
        f"torch {torch.__version__}, from where torch came from, then {INSTALL}"
    )


# -- the user's own -------------------------------------------------------------------------------------------------


def from_file(path: str, function: str, *, classes: int, channels: int, size: int) -> nn.Module:
    """Build the user's own network: run a Python file and call one of its functions.

    The function gets those of the keywords `classes`, `channels` and `size` that it takes. The file can import its
    neighbours; all are read anew each time and leave no cache behind.

    Raises:
        ModelError: no such file or function; an exception inside, with its file and line; no network returned.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise ModelError(f"no such file: {path} (of the model {path}:{function})")
    with _telling_where(path, file), _importable(file.parent):
        build = _function(_run(file), path, function)
        keywords = _taken(build, {"classes": classes, "channels": channels, "size": size})
        model = build(**keywords)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{path}:{function} returned an object of type {type(model).__name__}; it must return a torch.nn.Module"
        )
    return model


def _run(file: Path) -> ModuleType:
    """Run a file as a module of its own name, so that files called alike do not meet."""
    name = f"edgewise_user_{file.stem}_{sha256(str(file).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Compiled here: the loader would leave a cache beside the user's file and miss an edit within its second.
    code = compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    try:
        exec(code, module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _function(module: ModuleType, path: str, name: str) -> Callable[..., object]:
    found: object = getattr(module, name, None)
    if callable(found) and not isinstance(found, nn.Module):
        return found
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    functions = [key for key in own if callable(vars(module)[key]) and not key.startswith("_")]
    if found is not None:
        raise ModelError(
            f'"{name}" in {path} is of type {type(found).__name__}; it must be a function that returns a network'
        )
    hint = nearest(name, functions) if functions else "the file defines none"
    raise ModelError(f'{path} has no function called "{name}"; {hint}')


def _taken(function: Callable[..., object], keywords: dict[str, int]) -> dict[str, int]:
    """Return those of the keywords that a function takes."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function written in C may have no signature
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return keywords
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {name: value for name, value in keywords.items() if name in named}


_neighbours: set[str] = set()  # modules that users' files brought in; another file may mean others by their names


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a file import its neighbours, as it can when it is run: its own, whatever another file imported before."""
    for name in _neighbours:
        sys.modules.pop(name, None)
    _neighbours.clear()
    importlib.invalidate_caches()
    known, caching = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = caching
        with suppress(ValueError):  # the file may have taken it away itself
            sys.path.remove(str(folder))
        _neighbours.update(name for name in set(sys.modules) - known if _is_beside(name, folder))


def _is_beside(name: str, folder: Path) -> bool:
    """Whether a module was imported from a folder, by its name there; an environment inside it has other names."""
    place = folder.joinpath(*name.split("."))
    return getattr(sys.modules[name], "__file__", None) in (f"{place}.py", str(place / "__init__.py"))


def source_files(file: Path) -> list[Path]:
    """List a Python file and the neighbours it needs: those in its folder that it imports, or that they import."""
    found = [file]
    for path in found:  # which grows meanwhile
        for parts in _imports(path, file.parent):
            for length in range(1, len(parts) + 1):
                place = file.parent.joinpath(*parts[:length])
                modules = (place.with_name(f"{place.name}.py"), place / "__init__.py")
                found += [module for module in modules if module.is_file() and module not in found]
    return found


def _imports(path: Path, folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield the names of the modules that a file may import, wherever in it, as seen from a folder."""
    package = path.relative_to(folder).parent.parts
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            base = (*above, *(node.module.split(".") if node.module else ()))
            yield from (base, *((*base, alias.name) for alias in node.names))


@contextmanager
def _telling_where(path: str, file: Path) -> Iterator[None]:
    """Turn whatever the user's file raises into a `ModelError` that names the file and the line."""
    try:
        yield
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        lines = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == str(file)]
        if isinstance(error, SyntaxError) and error.filename == str(file) and error.lineno:
            lines.append(error.lineno)
        where = f"{path}:{lines[-1]}" if lines else path
        raise ModelError(f"{where}: {one_line(error)}") from error
