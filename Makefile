# Commands for development and continuous integration. `make help` lists them.
#
#   PYTHON   Python interpreter for the environment, 3.11 or later (python3)
#   VENV     folder of the environment (.venv)
#   TIER     test tiers for `make test` (all)
#   BASELINE revision that `make bench` measures next to this one (none)
#   CASES    cases of `make bench`: names in benchmarks/cases.py and benchmarks/run.py, and cluster (all)
#   RANKS    numbers of ranks for `make bench-scale` (1000)
#   ROUNDS   maximum number of rounds of each case of `make bench` (9)
#   MINUTES  time for all transforms of `make bench` on one machine (unlimited), or for the actions of `make soak` (5)
#   SEED     seed of `make soak` (random)
#   SECONDS  time of each scenario of `make simulate` (60), or of each parser of `make fuzz` (10)
#   BOUND    maximum number of deviations of a schedule of `make simulate` (2)
#   INPUTS   maximum number of inputs of each parser of `make fuzz` (unlimited)
#   PARSERS  parsers for `make fuzz`: names in tests/fuzz/targets (all)
#   TESTS    tests for `make test-in-vm` (those of memory limits)
#   STORAGE  storage of `make test-in-vm`: DISK or NFS (DISK)
#   CORPUS   folder that keeps the inputs of `make fuzz` for the next run (none)
#   DIST     output folder of `make dist` (dist)
#   VERSION  version for `make release`
#   K8S      Kubernetes minor version for `make test` and `make cluster`: 1.34 or 1.37 (1.37)
#   PROFILE  number of random cases in tests: few or all (few)
#   REGISTRY, PLATFORMS, TAG, ENGINE   settings of `make images` (scripts/images.sh)

PYTHON ?= python3
VENV ?= .venv
TIER ?=
DIST ?= dist
DIST_VENV := .venv-dist
K8S ?=
PROFILE ?=
PLATFORMS ?= linux/amd64,linux/arm64
TAG ?= $(shell sed -n 's/^appVersion: //p' helm/reshard/Chart.yaml)

SHELL := /bin/sh
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Caches of the tools are outside the tree, separate for each checkout.
export RESHARD_CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/reshard
TREE_CACHE := $(RESHARD_CACHE)/tree-$(shell printf %s '$(CURDIR)' | cksum | cut -d ' ' -f 1)
export RUFF_CACHE_DIR := $(TREE_CACHE)/ruff
export MYPY_CACHE_DIR := $(TREE_CACHE)/mypy
export HYPOTHESIS_STORAGE_DIRECTORY := $(TREE_CACHE)/hypothesis
export PYTEST_CACHE := $(TREE_CACHE)/pytest
export RESHARD_TEST_PROFILE := $(PROFILE)
export K8S

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(READY) ## Create the environment, with `reshard` in .venv/bin

$(READY): pyproject.toml operator/pyproject.toml constraints.txt scripts/venv.sh scripts/apt.sh
	@sh scripts/venv.sh '$(PYTHON)' 3.11 '$(VENV)'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[s3,crypto,otel,dev]' -e ./operator
	@touch $@

.PHONY: demo
demo: $(READY) ## Reshard a small checkpoint
	@PATH="$(abspath $(BIN)):$$PATH" sh examples/demo.sh

.PHONY: test
test: $(READY) ## Run the tests; TIER=unit (or conformance, compiled, s3...) runs one tier, K8S=1.34 selects a Kubernetes version
	@PYTHON='$(PYTHON)' sh scripts/test.sh $(BIN)/python $(TIER)

.PHONY: simulate
simulate: $(READY) ## Explore schedules of processes that write to one target: SECONDS for each scenario (60), BOUND of deviations (2)
	@PYTHONPATH=tests/support $(BIN)/python -m simulation '$(or $(SECONDS),60)' '$(or $(BOUND),2)'

.PHONY: test-in-vm
test-in-vm: $(READY) ## Run unit tests in a virtual machine with cgroup v2; STORAGE=NFS uses NFS, TESTS="tests/unit/test_locks.py" selects some
	@sh scripts/vm/run.sh $(BIN)/python '$(or $(STORAGE),DISK)' $(or $(TESTS),tests/unit/test_memory_limit.py tests/unit/test_commit_memory.py)

.PHONY: test-pythons
test-pythons: ## Run the unit tier on every installed Python from 3.11 to 3.14
	@for version in 3.11 3.12 3.13 3.14; do \
	  if python=$$(sh scripts/pythons.sh $$version); then \
	    echo "== $$python"; $(MAKE) test TIER=unit PYTHON=$$python VENV=.venv-python$$version || exit 1; \
	  else \
	    echo "== Python $$version is not installed: skipped"; \
	  fi; \
	done

.PHONY: soak
soak: $(READY) ## Perform random operations and failures on a cluster, and check all targets; MINUTES=5, SEED=...
	@PYTHON='$(PYTHON)' sh scripts/cluster.sh $(BIN)/python run -- $(BIN)/python tests/soak/soak.py \
	  $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

.PHONY: cluster
cluster: $(READY) ## Start the Kubernetes cluster of the tests; Ctrl-C stops it
	@PYTHON='$(PYTHON)' sh scripts/cluster.sh $(BIN)/python up

.PHONY: cluster-demo
cluster-demo: $(READY) ## Install the chart and run the examples, in the cluster of KUBECONFIG or in a new one
	@if [ -n "$$KUBECONFIG" ]; then sh examples/cluster-demo.sh; \
	else PYTHON='$(PYTHON)' sh scripts/cluster.sh $(BIN)/python run -- sh examples/cluster-demo.sh; fi

# The tools have an environment of their own, because they need far more than the project does.
.PHONY: dist
dist: ## Build wheels and sdists, with their SBOMs and provenance, in DIST
	@sh scripts/venv.sh '$(PYTHON)' 3.11 $(DIST_VENV)
	@$(DIST_VENV)/bin/python -m pip install --quiet --upgrade -c constraints.txt -r scripts/dist-requirements.txt
	@$(DIST_VENV)/bin/python scripts/dist.py '$(DIST)'

.PHONY: release
release: $(READY) ## Prepare a release in the tree: VERSION=x.y.z in the changelog, packages, chart, CRD and images
	@$(BIN)/python scripts/release.py '$(VERSION)'

.PHONY: images
images: ## Build both images and push them: REGISTRY=... [PLATFORMS=linux/amd64,linux/arm64] [TAG=...] [ENGINE=...]
	@ENGINE='$(ENGINE)' sh scripts/images.sh '$(REGISTRY)' '$(PLATFORMS)' '$(TAG)'

.PHONY: lint
lint: $(READY) ## Check style, types and imports between modules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --cache-dir $(TREE_CACHE)/import-linter

.PHONY: format
format: $(READY) ## Format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: docs
docs: $(READY) ## Generate docs/api.md, docs/cli.md, docs/errors.md, the chart's copy of the CRD and the chart's reference
	$(BIN)/python scripts/api_reference.py >docs/api.md
	$(BIN)/python scripts/cli_reference.py >docs/cli.md
	$(BIN)/python scripts/error_catalogue.py >docs/errors.md
	cp crds/checkpointtransforms.yaml helm/reshard/files/
	$(BIN)/python scripts/chart_reference.py

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

.PHONY: docs-site
docs-site: $(VENV)/.docs ## Build the documentation site in build/site; a broken link or anchor is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

$(VENV)/.fuzz: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[fuzz]'
	@touch $@

.PHONY: fuzz
fuzz: $(VENV)/.fuzz ## Fuzz all parsers; SECONDS=60 or INPUTS=1000000 for each, PARSERS="ckpt urls" selects some
	@$(BIN)/python tests/fuzz --seconds '$(or $(SECONDS),10)' --inputs '$(or $(INPUTS),-1)' $(if $(CORPUS),--corpus '$(CORPUS)') $(PARSERS)

.PHONY: bench
ONE_MACHINE := $(if $(CASES),$(filter-out cluster,$(CASES)),all)
bench: $(READY) ## Measure speed and memory; BASELINE=REVISION compares with another build, CASES="..." selects cases
	@[ -z '$(ONE_MACHINE)' ] || \
	  RESHARD_MINDSPORE_PYTHON="$${RESHARD_MINDSPORE_PYTHON:-$(firstword $(wildcard $(RESHARD_CACHE)/mindspore-*/bin/python))}" \
	  $(BIN)/python benchmarks/run.py $(filter-out all,$(ONE_MACHINE)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
	  $(if $(MINUTES),--minutes $(MINUTES)) $(if $(BASELINE),--baseline "$$(sh scripts/baseline.sh '$(PYTHON)' '$(BASELINE)')")
ifneq ($(if $(CASES),$(filter cluster,$(CASES)),all),)
	@PYTHON='$(PYTHON)' sh scripts/cluster.sh $(BIN)/python run -- $(BIN)/python benchmarks/on_cluster.py || [ $$? -eq 3 ]  # 3: skipped, with a reason
endif

.PHONY: bench-scale
bench-scale: $(READY) ## Measure the operator with many ranks and transforms; CASES="ranks at-once history one-node", RANKS="1000 10000"
	@PYTHON='$(PYTHON)' sh scripts/cluster.sh $(BIN)/python run -- $(BIN)/python benchmarks/scale.py $(CASES) \
	  $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(RANKS),--ranks $(RANKS)) || [ $$? -eq 3 ]  # 3: skipped, with a reason

.PHONY: bench-s3
bench-s3: $(READY) ## Measure transforms from S3 to S3, and raw requests for the same bytes
	@export $$(sh tests/s3/prepare.sh versitygw) && $(BIN)/python benchmarks/s3.py && $(BIN)/python benchmarks/s3.py long-rows --copy-mode server

# The only target that selects versions: the newest that pyproject.toml allows, for all supported Pythons and platforms.
.PHONY: constraints
constraints: ## Update the versions in constraints.txt
	@sh scripts/venv.sh '$(PYTHON)' 3.11 '$(RESHARD_CACHE)/uv'
	@$(RESHARD_CACHE)/uv/bin/python -m pip install --quiet --upgrade uv
	$(RESHARD_CACHE)/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --all-extras --upgrade --no-annotate \
	  --custom-compile-command 'make constraints' --no-emit-package reshard --output-file constraints.txt \
	  pyproject.toml operator/pyproject.toml scripts/dist-requirements.txt

.PHONY: clean
clean: ## Remove environments, build results and caches
	rm -rf .venv .venv-* build dist $(TREE_CACHE)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
