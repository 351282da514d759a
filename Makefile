# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
RUN := $(VENV)/bin
DATA ?=

.PHONY: demo test test-clone test-oldest test-gpu bench docs lint unit clean
.DEFAULT_GOAL := demo

# pip would compile all of its modules, which takes longer than to install them; Python keeps those that it compiles on import
export PYTHONDONTWRITEBYTECODE :=

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install -q --no-compile -c constraints.txt --upgrade pip  # that of Python 3.11 takes twice as long
	$(RUN)/python -m pip install -q --no-compile -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.spark: $(VENV)/.installed  # half a gigabyte that only tests need
	$(RUN)/python -m pip install -q --no-compile -c constraints.txt -e '.[spark]'
	touch $@

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install -q --no-compile -c constraints-oldest.txt -e '.[test]'
	touch $@

demo: $(VENV)/.installed  ## prepare, SPT, RPT, test, predict; DATA=path/to/file for data of your own
	$(RUN)/lares demo $(if $(DATA),--data "$(DATA)")

test: lint unit  ## what CI runs

lint: $(VENV)/.installed
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

unit: $(VENV)/.spark
	$(RUN)/python -m pytest -n 2

# without TESTS all quick tests: make test-clone TESTS=
TESTS ?= tests/test_golden.py tests/test_architecture.py tests/docs
test-clone: $(VENV)/.installed  ## some quick tests in a clone of the last commit, with nothing beside it
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && git clone -q . "$$folder/clone" && cd "$$folder/clone" \
	  && PYTHONPATH=src $(CURDIR)/$(RUN)/python -m pytest -n 2 -m "not slow" $(TESTS)

test-oldest: $(OLDEST)/.installed  ## the quick tests with the oldest versions that pyproject.toml allows
	$(OLDEST)/bin/python -m pytest -n 2 -m "not slow"

# in the environment of PYTHON, which brings a torch for CUDA; the tests need what `pip install -e '.[test]'` installs
test-gpu:  ## golden values, no waiting, CUDA graphs and memory on a CUDA device; skipped without one
	$(PYTHON) -m pytest tests/gpu tests/test_golden.py

bench: $(VENV)/.installed  ## the slow side against ours: CPU seconds, peak memory, ratios
	$(RUN)/python benchmarks/bench.py $(DATA)

docs: $(VENV)/.installed  ## the documentation site, in build/site; a warning or a broken link is an error
	$(RUN)/python docs/pages.py
	$(RUN)/zensical build --strict --clean --config-file build/mkdocs.yml

clean:
	rm -rf $(VENV) $(OLDEST) dist build
