# Everything runs in .venv, which the first target that needs it makes. `make demo` and `make test` are all it takes.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PEERS := .bench/peers

# The processes that tests start would else compile the package each time: it doubled their time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test torture bench bench-peers docs-check lint format format-check types imports schema-check wheel-check check clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/memory-store demo

# More processes than a small machine has cores: tests wait for syncs, for other processes, or for a clock.
test: $(READY)
	$(BIN)/python -m pytest -n 3 --dist worksteal

torture: $(READY)
	$(BIN)/python -m pytest -m slow --timeout 7200

bench: $(READY)
	$(BIN)/python -m tests.benchmarks all --write
	$(BIN)/python -m tests.benchmarks quality --write

# Peers live in an environment of their own: they pull in far more than the store may.
bench-peers: $(READY)
	test -d $(PEERS) || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[cli,test]'
	$(PEERS)/bin/python -m pip install --quiet -r tests/benchmarks/peers-requirements.txt
	$(PEERS)/bin/python -m tests.benchmarks peers --write

docs-check: $(READY)
	$(BIN)/python -m pytest tests/docs

lint: $(READY)
	$(BIN)/ruff check .

format: $(READY)
	$(BIN)/ruff format .

format-check: $(READY)
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy
	$(BIN)/pyright

imports: $(READY)
	$(BIN)/lint-imports

# The models and the migrations say the same.
schema-check: $(READY)
	rm -rf .bench/schema && mkdir -p .bench/schema
	$(BIN)/alembic -x url=sqlite:///.bench/schema/check.db upgrade head
	$(BIN)/alembic -x url=sqlite:///.bench/schema/check.db check

# A wheel, installed in a fresh environment away from the checkout and used once.
wheel-check: $(READY)
	rm -rf dist .bench/wheel && $(BIN)/python -m build --wheel --quiet
	$(PYTHON) -m venv .bench/wheel
	.bench/wheel/bin/python -m pip install --quiet --constraint constraints.txt "$$(ls $$PWD/dist/*.whl)[cli]"
	cd .bench/wheel && ./bin/memory-store upgrade --url sqlite:///used-once.db && ./bin/memory-store check --url sqlite:///used-once.db

check: test lint format-check types imports schema-check wheel-check

clean:
	rm -rf .venv .bench dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
