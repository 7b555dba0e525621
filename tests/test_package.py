"""The package as a whole: its public names, its layers, what importing it costs."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import edgewise
from edgewise.data import Kind

ROOT = Path(__file__).resolve().parents[1]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_every_public_name_is_there_and_sorted() -> None:
    assert edgewise.__all__ == sorted(edgewise.__all__)
    for name in edgewise.__all__:
        assert getattr(edgewise, name) is not None
    assert not hasattr(edgewise, "nothing_of_the_kind")


def test_imports_go_downward_only() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        assert importlib.import_module("import_direction").violations() == []
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def test_importing_edgewise_and_asking_for_help_leaves_torch_alone() -> None:
    heavy = "{'torch', 'pydantic', 'onnx', 'onnxruntime', 'altair', 'scipy', 'numpy', 'PIL'}"
    assert run(f"import sys, edgewise; print({heavy} & sys.modules.keys())") == "set()"
    code = (
        "import sys; sys.argv = ['edgewise', '--help']\n"
        "import edgewise.cli\n"
        "try: edgewise.cli.main()\nexcept SystemExit: pass\n"
        f"print('heavy:', {heavy} & sys.modules.keys())"
    )
    assert run(code).endswith("heavy: set()")


def test_the_graph_needs_no_heavy_library() -> None:
    heavy = "{'pydantic', 'onnx', 'onnxruntime', 'altair', 'PIL', 'rich', 'jinja2', 'kneed'}"
    names = "ew.trace, ew.shrink, ew.cost_of, ew.prune, ew.train"
    assert run(f"import sys, edgewise as ew; {names}; print({heavy} & sys.modules.keys())") == "set()"


def test_the_readme_example_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = readme.partition("```python\n")[2].partition("```")[0]
    assert "ew." in code
    assert "macs=" in run(code)


def test_what_makes_networks_smaller_does_not_know_what_they_are_for() -> None:
    """Pruning, quantising, sparsifying, exporting and measuring name no task: they see a loss, answers and outputs."""
    package = Path(edgewise.__file__).parent
    named = re.compile("|".join(get_args(Kind)), re.IGNORECASE)
    for layer in ("prune", "quantize", "sparse", "export", "devices"):
        for file in sorted((package / layer).rglob("*.py")):
            assert not named.search(file.read_text(encoding="utf-8")), file
