# make run    the four strategies on the embedded digits; ARGS="--seeds 0,1,2" adds options
# make test   lint, types and tests; TESTS=tests/zoo picks some of the tests
# make report tables of README and docs, and the page of figures, from the records in benchmarks/
# make lint, make format, make clean
#
# The first call creates .venv and installs into it; later calls skip that until pyproject.toml
# changes. Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
WORKERS ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
ARGS ?=
TESTS ?=

VENV := .venv
BIN := $(VENV)/bin
TYPED := build/typed

.PHONY: run test report lint types format clean
.DEFAULT_GOAL := run
.NOTPARALLEL:

# Installed uncompiled (see below): where this forbade to keep what is compiled at an import, each
# process of the tests would compile torch, and most of them Avalanche, all over again.
unexport PYTHONDONTWRITEBYTECODE

run: $(VENV)/.installed
	$(BIN)/firefly-cl run $(ARGS)

# One thread per worker: workers that each take every core slow one another down many times over.
test: lint
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal \
		--benchmark-disable $(TESTS)

report: $(VENV)/.installed
	$(BIN)/firefly-cl report benchmarks/records benchmarks/accuracy --markdown README.md \
		--grid benchmarks/accuracy.toml --html docs/results/report.html
	$(if $(wildcard benchmarks/records/growth),\
		$(BIN)/firefly-cl report benchmarks/records/growth --markdown docs/growth.md)
	$(if $(wildcard benchmarks/class_incremental),\
		$(BIN)/firefly-cl report benchmarks/class_incremental --markdown docs/benchmark.md)
	$(if $(wildcard benchmarks/baselines),\
		$(BIN)/firefly-cl report benchmarks/baselines --markdown docs/baselines.md \
		--grid benchmarks/split_cifar100.toml)
	$(if $(wildcard benchmarks/literature),\
		$(BIN)/firefly-cl report benchmarks/literature --markdown docs/literature.md \
		--grid benchmarks/literature.toml)
	$(if $(wildcard benchmarks/pruning),\
		$(BIN)/firefly-cl report benchmarks/pruning --markdown docs/pruning.md)
	$(if $(wildcard benchmarks/ablations),\
		$(BIN)/firefly-cl report benchmarks/ablations --markdown docs/ablations.md \
		--grid benchmarks/ablations.toml)
	$(if $(wildcard benchmarks/accuracy),\
		$(BIN)/firefly-cl report benchmarks/accuracy benchmarks/earlier/accuracy --markdown docs/accuracy.md \
		--grid benchmarks/accuracy.toml)
	$(if $(wildcard benchmarks/stage_widths),\
		$(BIN)/python benchmarks/stage_widths.py --draw)
	$(if $(wildcard benchmarks/records/step_time.json),\
		$(BIN)/python benchmarks/step_time.py --draw)
	$(if $(wildcard benchmarks/records/growth_step.json),\
		$(BIN)/python benchmarks/growth_step.py --draw)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory types

# scenarios/ and baselines/ lie beside the package that they install into; mypy sees them inside it
# through a tree of links.
types: $(VENV)/.installed-dev
	@mkdir -p $(TYPED)/firefly_cl
	@find $(TYPED) -type l -exec rm {} +
	@ln -sfn $(CURDIR)/firefly_cl/* $(TYPED)/firefly_cl/
	@ln -sfn $(CURDIR)/scenarios $(CURDIR)/baselines $(TYPED)/firefly_cl/
	cd $(TYPED) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { \
		echo "no $(PYTHON) here: install Python 3.10 or newer, or name one (make PYTHON=...)"; \
		exit 1; } >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "$(PYTHON) is $$($(PYTHON) --version 2>&1): firefly_cl needs Python 3.10 or newer;" \
			"name one (make PYTHON=python3.12)"; \
		exit 1; } >&2
	@$(PYTHON) -m venv $(VENV) || { \
		echo "$(PYTHON) cannot create $(VENV): install its venv module (Debian, Ubuntu:" \
			"apt install python3-venv)"; \
		exit 1; } >&2
	@touch $@

# Modules are compiled as they are imported: all of them would take a minute, few are used.
$(VENV)/.installed: pyproject.toml | $(VENV)/.created
	@echo "Installing firefly_cl into $(VENV): once, some minutes (torch is large)"
	$(BIN)/pip install --quiet --no-compile --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.created
	@echo "Installing firefly_cl and its development tools into $(VENV): once, some minutes"
	$(BIN)/pip install --quiet --no-compile --editable '.[dev]'
	@touch $@ $(VENV)/.installed
