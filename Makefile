# Each target makes .venv and installs what it needs; once that is done it starts at once.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONUNBUFFERED = 1

.PHONY: demo test check results bench bench-graph bench-int8 clean

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/.ready
	$(BIN)/edgewise compress recipes/demo.toml

check: .venv/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/import_direction.py
	$(BIN)/python scripts/results_page.py --check

results: .venv/.ready
	$(BIN)/python scripts/results_page.py

test: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

bench: .venv/.ready
	$(BIN)/python benchmarks/graph_speed.py
	$(BIN)/python benchmarks/train_loop.py

bench-graph: .venv/.ready
	$(BIN)/python benchmarks/graph_zoo.py

bench-int8: .venv/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/int8_grid.py --half --out docs/results/int8_grid.json

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
