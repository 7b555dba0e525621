"""The results page: what is committed is what the figures make."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_is_what_its_figures_make() -> None:
    script = ROOT / "scripts" / "results_page.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_figure_makes_another_page(tmp_path: Path) -> None:
    for folder in ("docs", "scripts"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".json", ".md", ".py", ".j2"):
                copy = tmp_path / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
    demo = tmp_path / "docs" / "results" / "demo.json"
    demo.write_text(demo.read_text().replace("0.8805", "0.9911"))
    script = tmp_path / "scripts" / "results_page.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "run make results" in done.stdout
    subprocess.run([sys.executable, script], check=True)
    assert "99.11 %" in (tmp_path / "docs" / "results.md").read_text()
