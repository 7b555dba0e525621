"""What report.html and the comparison page share: one HTML file without a network, and the words for a change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from edgewise.errors import RunFolderError
from edgewise.files import read_json
from edgewise.layout import RESULTS
from edgewise.units import DASH, format_bytes, format_signed

if TYPE_CHECKING:
    from jinja2 import Environment

Words = tuple[str, str, str]  # what a cost below, above and equal to the dense network's is called
Told = tuple[str, str]  # a text, and its tone: "good", "bad" or none

LESS: Words = ("less", "more", "the same")
SIZE: Words = ("smaller", "larger", "same size")
SPEED: Words = ("faster", "slower", "same speed")
SAME = 0.005  # a ratio this near to 1 is called the same
FAMILIES = {"resnet": "ResNet", "vgg": "VGG", "mobilenet_v": "MobileNetV", "convnext": "ConvNeXt"}


def page(template: str, specs: Mapping[str, Any], **values: Any) -> str:
    """Fill a template of the package; every text is escaped.

    Args:
        template: the file's name.
        specs: the page's charts by name, as Vega-Lite specifications.
        values: what the template names; one that is missing is an error.
    """
    from edgewise.charts import vega_script

    scripts = {name: _json_in_html(spec) for name, spec in specs.items()}
    return _environment().get_template(template).render(specs=scripts, vega=vega_script() if specs else "", **values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _json_in_html(value: Any) -> str:
    """Return compact JSON that cannot end the script element that holds it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def read_run(run: Path, name: str) -> dict[str, Any]:
    """Read results.json or manifest.json of a run folder.

    Raises:
        RunFolderError: the folder or the file is missing, or the file holds something else.
    """
    path = run / name
    try:
        value = read_json(path)
    except FileNotFoundError:
        state = "the run is not finished" if run.is_dir() else "no such folder"
        raise RunFolderError(f"{path}: missing; {state}") from None
    except NotADirectoryError:
        raise RunFolderError(f"{run}: a file, not a run folder") from None
    except ValueError as error:
        raise RunFolderError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict) or (name == RESULTS and not value.get("rows")):
        raise RunFolderError(f"{path}: holds nothing of a run")
    return value


# -- words ----------------------------------------------------------------------------------------------------------


def ratio(new: float | None, old: float | None) -> float | None:
    """Return new / old, or None where one is unknown or there is nothing to compare with."""
    return None if new is None or not old else new / old


def change(of: float | None, words: Words) -> Told:
    """Say a ratio of costs, new to old, as a factor and a word.

    >>> change(0.1, ("smaller", "larger", "same size")), change(1.25, ("faster", "slower", "same speed"))
    (('10.0× smaller', 'good'), ('1.25× slower', 'bad'))
    """
    less, more, same = words
    if of is None:
        return DASH, ""
    if abs(of - 1) < SAME:
        return same, ""
    if not of:
        return "gone", "good"
    factor = max(of, 1 / of)
    digits = 0 if factor >= 99.5 else 1 if factor >= 1.95 else 2
    return (f"{factor:.{digits}f}× {more}", "bad") if of > 1 else (f"{factor:.{digits}f}× {less}", "good")


def fewer(what: str) -> Words:
    """Return the words for a count of something."""
    return f"fewer {what}", f"more {what}", f"same {what}"


def gain(points: float | None) -> Told:
    """Say a change of accuracy in points.

    >>> gain(-0.95), gain(0.25)
    (('−0.95 points', 'bad'), ('+0.25 points', 'good'))
    """
    text = format_signed(points)
    tone = {"−": "bad", "+": "good"}.get(text[0], "")
    return (text, "") if points is None else (f"{text} points", tone)


def display_name(model: str) -> str:
    """Return a network's name as papers write it, where its family is known.

    >>> display_name("resnet20"), display_name("vgg16_bn"), display_name("mobilenet_v2"), display_name("timm:dla34")
    ('ResNet-20', 'VGG-16-BN', 'MobileNetV2', 'timm:dla34')
    """
    for prefix, family in FAMILIES.items():
        if model.startswith(prefix):
            rest = [part.upper() if part == "bn" else part for part in model.removeprefix(prefix).split("_") if part]
            return family + "-".join(rest) if family.endswith("V") else "-".join([family, *rest])
    return model


def display_data(source: str) -> str:
    """Return the name of data that were read: of a folder of the user's own its last part.

    >>> display_data("pack:/mnt/sets/flowers"), display_data("cifar10:/mnt/sets"), display_data("fashion-mnist")
    ('flowers', 'cifar10', 'fashion-mnist')
    """
    kind, _, place = source.partition(":")
    return PurePath(place).name or source if kind in ("pack", "folder") else kind


def conditions(measurement: Mapping[str, Any]) -> str:
    """Say under which conditions a latency was measured; one measured under others is not to be compared with it."""
    threads = "1 thread" if measurement["threads"] == 1 else f"{measurement['threads']} threads"
    return f"{measurement['runtime']} {measurement['version']}, {threads}, {measurement['cpu']}"


def facts(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested values into names and texts; sizes are written as sizes.

    >>> facts({"cpu": "X1", "memory_bytes": 2_000_000_000, "versions": {"torch": "2.13"}})
    [('cpu', 'X1'), ('memory', '2.00 GB'), ('versions torch', '2.13')]
    """
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            found += facts(value, f"{name} ")
        elif key.endswith("_bytes") and isinstance(value, int | float):
            found.append((name.removesuffix(" bytes"), format_bytes(value)))
        elif isinstance(value, list | tuple):
            found.append((name, ", ".join(map(str, value)) or DASH))
        else:
            found.append((name, DASH if value is None else str(value)))
    return found
