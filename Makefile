# Each target makes .venv when it is missing. PYTHON is the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
FIGURE_PROBLEMS := 800

.PHONY: demo figures test lint format bench clean

demo: $(STAMP)  ## step maps of the bundled reasoner's right and wrong traces -> demo/
	$(BIN)/stepsal demo --out demo

figures: $(STAMP)  ## the committed figures, from FIGURE_PROBLEMS test problems of the bundled reasoner (about 10 minutes)
	$(BIN)/stepsal demo --out build/figures --problems $(FIGURE_PROBLEMS)
	$(BIN)/stepsal compare build/figures
	for name in tokens maps profiles heads forest; do $(BIN)/python figures/$$name.py build/figures || exit 1; done
	cp build/figures/demo.png build/figures/demo.pdf figures/

test: $(STAMP)  ## the whole suite, docstring examples included; offline, CPU
	$(BIN)/python -m pytest

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP)  ## the README's tables of time and memory (about 15 minutes)
	$(BIN)/python benchmarks/saliency.py
	$(BIN)/python benchmarks/decoding.py

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis demo build
