# Two commands do everything from a bare clone: `make demo` measures, `make test` checks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sscn-bench
WHEELS := $(CACHE)/wheels
MINKOWSKI := $(WHEELS)/.minkowski-$(shell $(PYTHON) -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
NATIVE := CMakeLists.txt $(shell find backends/sscn -name '*.cpp' -o -name '*.h' -o -name '*.hpp')
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
REPORT := report
# Most tests use one thread.
SIDE_BY_SIDE := --numprocesses=auto --maxprocesses=4 --dist=loadfile

SITE := build/site
BATCHES := --batch 1 --batch 4 --batch 16

.PHONY: demo test docs links site entries setup minkowski clean help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.demo  ## measure the engines that run here and write the page
	$(BIN)/python -m harness run demo
	$(BIN)/python -m harness compare latest --report $(REPORT)

test: $(VENV)/.test  ## lint, types and every test that this machine can run
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/python -m numpydoc lint $$(find backends harness suites -name '*.py')
	$(BIN)/clang-format --dry-run --Werror $$(find backends -name '*.cpp' -o -name '*.hpp')
	$(BIN)/mypy
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --cov --cov-report=term $(PYTEST_ARGS)

docs: $(VENV)/.docs  ## build the documentation, in build/docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --nitpicky docs build/docs
	@echo "documentation: build/docs/index.html"

links: $(VENV)/.docs  ## request every address that the documentation links to
	$(BIN)/sphinx-build --quiet --builder linkcheck -D nb_execution_mode=off docs build/links
	@echo "every address answers; build/links/output.txt lists those that have moved"

site: $(VENV)/.docs  ## build the documentation and the rankings of results/submissions, in build/site
	$(BIN)/sphinx-build --quiet --fail-on-warning --nitpicky --tag site docs build/docs-of-site
	$(BIN)/python -m harness site results/submissions --docs build/docs-of-site --out $(SITE)

entries: $(VENV)/.test  ## measure this machine (hours) and pack it as NAME.zip in results/submissions
	@test -n "$(NAME)" || { echo "name the machine: make entries NAME=zen4-2-cores"; exit 2; }
	@mkdir -p build
	for suite in "inference $(BATCHES)" "training $(BATCHES)" accuracy spine; do \
	    $(BIN)/python -m harness run $$suite $(ENTRY_OPTIONS) --resume \
	        --out "build/entries-$${suite%% *}.jsonl" || exit; \
	done
	$(BIN)/python -m harness submit pack build/entries-*.jsonl --out results/submissions/$(NAME).zip

setup: $(VENV)/.test  ## everything that a developer needs

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "sscn-bench needs Python 3.11 or newer, and $(PYTHON) is not: make $(MAKECMDGOALS) PYTHON=python3.11"; \
	    exit 2; }
	@command -v $${CXX:-c++} >/dev/null || { \
	    echo "sscn-bench compiles its engine and finds no C++ compiler: install g++, or name one: CXX=… make $(MAKECMDGOALS)"; \
	    exit 2; }
	@echo "creating $(VENV)"
	$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@touch $@

# torch first and pinned: an unpinned request could bring another build of several gigabytes.
$(VENV)/.torch: $(VENV)/.python constraints.txt
	@echo "installing torch"
	@$(PIP) torch || { echo "torch cannot be installed: see the message above; without a network, set PIP_FIND_LINKS to a folder of wheels"; exit 2; }
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml constraints.txt $(NATIVE)
	@echo "installing sscn-bench and the engines that the package index has"
	@$(PIP) --editable ".[spconv]"
	@touch $@

# ocnn goes without its dependencies: it declares torchvision, never uses it, and that would
# replace torch. Of axe-playwright-python only axe-core is used, without playwright.
$(VENV)/.test: $(VENV)/.demo
	@echo "installing what the tests need"
	@$(PIP) --editable ".[spconv,spine,simulate,dask,asv,gpu,test]"
	@$(PIP) --no-deps ocnn axe-playwright-python
	@if [ -e "$(MINKOWSKI)" ]; then $(PIP) --no-deps --no-index --find-links "$(WHEELS)" MinkowskiEngine; fi
	@touch $@

$(VENV)/.docs: $(VENV)/.demo
	@echo "installing what the documentation needs"
	@$(PIP) --editable ".[spconv,docs]"
	@touch $@

minkowski: $(VENV)/.torch $(MINKOWSKI)  ## build MinkowskiEngine once (about 7 minutes) and install it
	@$(PIP) --no-deps --no-index --find-links "$(WHEELS)" MinkowskiEngine

# MinkowskiEngine's setup.py calls pip and finds its BLAS by name only; the wheel is kept for the next checkout.
$(MINKOWSKI): | $(VENV)/.torch
	@ldconfig -p | grep -q libopenblas.so || { echo "MinkowskiEngine needs OpenBLAS's headers: install libopenblas-dev"; exit 2; }
	@$(PIP) ninja wheel setuptools
	mkdir -p "$(WHEELS)"
	PATH="$(CURDIR)/$(BIN):$$PATH" MAX_JOBS=2 $(BIN)/python -m pip wheel --no-build-isolation --no-deps \
	    --config-settings="--global-option=--blas=openblas" --wheel-dir "$(WHEELS)" MinkowskiEngine==0.5.4
	touch $@

clean:  ## remove everything that the targets made
	rm -rf $(VENV) build $(REPORT) .coverage .pytest_cache .mypy_cache .ruff_cache
