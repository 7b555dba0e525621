"""Hold the import direction: a layer imports from its own and those below, never from above."""

import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "edgewise"

# From top to bottom; the modules of one layer may import each other.
LAYERS = [
    {"__init__", "__main__", "cli", "console", "catalog"},
    {
        "plan",
        "run",
        "folder",
        "layout",
        "check",
        "steps",
        "prune_step",
        "sparse_step",
        "pack_step",
        "quantize_step",
        "quantize_file",
        "context",
        "results",
        "recipe",
        "record_table",
        "reproduce",
        "systems",
        "budget",
        "report",
        "comparison",
        "page",
        "teachers",
        "unseen",
        "pictures",
        "charts",
    },
    {"prune", "sparse", "quantize", "distill"},
    {"export", "devices"},
    {"train", "tasks", "data", "models"},
    {"graph", "cost"},
    {"files", "errors", "progress", "units"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> set[str]:
    """Return the first-level modules of edgewise that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "edgewise":
            rest = node.module.split(".")[1:]
            found |= {rest[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {p[1] for a in node.names if (p := a.name.split("."))[0] == "edgewise" and len(p) > 1}
    return found


def violations() -> list[str]:
    """Return one line for each import that goes upward, or from a module that no layer names."""
    lines = []
    for path in sorted(PACKAGE.rglob("*.py")):
        home = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if home not in LEVEL:
            lines.append(f"{path.relative_to(PACKAGE)}: {home} is in no layer of scripts/import_direction.py")
            continue
        if home == "__init__":
            continue
        for name in sorted(imports(path) & LEVEL.keys()):
            if LEVEL[name] < LEVEL[home]:
                lines.append(f"{path.relative_to(PACKAGE)}: {home} imports {name}, which is above it")
    return lines


if __name__ == "__main__":
    found = violations()
    print("\n".join(found) or "imports go downward only")
    sys.exit(bool(found))
