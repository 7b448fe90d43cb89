# Everything that a developer or a CI machine runs. `make help` lists it.
#
#   PYTHON   the interpreter that the environment is made from, 3.11 or newer (python3)
#   VENV     where the environment is (.venv)
#   TIER     the tiers of tests to run, for `make test` (all)
#   BASELINE a revision whose build `make bench` measures next to this one (none)
#   DIST     where `make dist` puts what it builds (dist)
#   VERSION  the version that `make release` prepares
#   PROFILE  how many random cases tests try: development or ci (ci if CI=true, else development)
#   REGISTRY, PLATFORMS, TAG, ENGINE   of the images, for `make images` (scripts/images.sh)

PYTHON ?= python3
VENV ?= .venv
TIER ?=
DIST ?= dist
DIST_VENV := .venv-dist
PROFILE ?=
PLATFORMS ?= linux/amd64,linux/arm64
TAG ?= $(shell sed -n 's/^appVersion: //p' helm/reshard/Chart.yaml)

SHELL := /bin/sh
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# What the tools remember is kept outside the tree, apart for every checkout.
export RESHARD_CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/reshard
TREE_CACHE := $(RESHARD_CACHE)/tree-$(shell printf %s '$(CURDIR)' | cksum | cut -d ' ' -f 1)
export RUFF_CACHE_DIR := $(TREE_CACHE)/ruff
export MYPY_CACHE_DIR := $(TREE_CACHE)/mypy
export HYPOTHESIS_STORAGE_DIRECTORY := $(TREE_CACHE)/hypothesis
export PYTEST_CACHE := $(TREE_CACHE)/pytest
export RESHARD_TEST_PROFILE := $(PROFILE)

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(READY) ## Make the environment, with `reshard` in .venv/bin

$(READY): pyproject.toml operator/pyproject.toml constraints.txt scripts/venv.sh scripts/apt.sh
	@sh scripts/venv.sh '$(PYTHON)' 3.11 '$(VENV)'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[s3,crypto,otel,dev]' -e ./operator
	@touch $@

.PHONY: demo
demo: $(READY) ## Reshard a small checkpoint, from start to end
	@PATH="$(abspath $(BIN)):$$PATH" sh examples/demo.sh

.PHONY: test
test: $(READY) ## Run the tests; TIER=unit (or conformance, compiled, s3...) for one of them
	@PYTHON='$(PYTHON)' sh scripts/test.sh $(BIN)/python $(TIER)

.PHONY: test-pythons
test-pythons: ## Run the unit tier on every Python of 3.11 to 3.14 that is here
	@for version in 3.11 3.12 3.13 3.14; do \
	  if python=$$(sh scripts/pythons.sh $$version); then \
	    echo "== $$python"; $(MAKE) test TIER=unit PYTHON=$$python VENV=.venv-python$$version || exit 1; \
	  else \
	    echo "== Python $$version is not here: left out"; \
	  fi; \
	done

.PHONY: cluster
cluster: $(READY) ## Start a Kubernetes cluster as the tests have it; Ctrl-C ends it
	@PYTHON='$(PYTHON)' sh scripts/cluster.sh $(BIN)/python up

.PHONY: cluster-demo
cluster-demo: $(READY) ## Install the chart and run the examples: in the cluster of KUBECONFIG, else in one of its own
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
lint: $(READY) ## Check style, types and the arrows between modules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --cache-dir $(TREE_CACHE)/import-linter

.PHONY: format
format: $(READY) ## Rewrite the code in the house's style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: docs
docs: $(READY) ## Make docs/api.md, docs/cli.md, the chart's copy of the CRD and the chart's reference
	$(BIN)/python scripts/api_reference.py >docs/api.md
	$(BIN)/python scripts/cli_reference.py >docs/cli.md
	cp crds/checkpointtransforms.yaml helm/reshard/files/
	$(BIN)/python scripts/chart_reference.py

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

.PHONY: docs-site
docs-site: $(VENV)/.docs ## Build the documentation site in build/site; a broken link or anchor is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

.PHONY: bench
bench: $(READY) ## Measure speed and memory; BASELINE=REVISION next to another build, CASES="..." for some of the cases
	@RESHARD_MINDSPORE_PYTHON="$${RESHARD_MINDSPORE_PYTHON:-$(firstword $(wildcard $(RESHARD_CACHE)/mindspore-*/bin/python))}" \
	  $(BIN)/python benchmarks/run.py $(CASES) $(if $(BASELINE),--baseline "$$(sh scripts/baseline.sh '$(PYTHON)' '$(BASELINE)')")
	@PYTHON='$(PYTHON)' sh scripts/cluster.sh $(BIN)/python run -- $(BIN)/python benchmarks/on_cluster.py || [ $$? -eq 3 ]  # said why

.PHONY: bench-s3
bench-s3: $(READY) ## The same from S3 to S3, beside raw requests for the same bytes
	@export $$(sh tests/s3/prepare.sh versitygw) && $(BIN)/python benchmarks/s3.py && $(BIN)/python benchmarks/s3.py long-rows --copy-mode server

# The one target that chooses versions: the newest that pyproject.toml allows, on every Python and machine it names.
.PHONY: constraints
constraints: ## Choose the versions in constraints.txt anew
	@sh scripts/venv.sh '$(PYTHON)' 3.11 '$(RESHARD_CACHE)/uv'
	@$(RESHARD_CACHE)/uv/bin/python -m pip install --quiet --upgrade uv
	$(RESHARD_CACHE)/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --all-extras --upgrade --no-annotate \
	  --custom-compile-command 'make constraints' --no-emit-package reshard --output-file constraints.txt \
	  pyproject.toml operator/pyproject.toml scripts/dist-requirements.txt

.PHONY: clean
clean: ## Remove the environments and what the tools remember of this tree
	rm -rf .venv .venv-* build dist $(TREE_CACHE)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
