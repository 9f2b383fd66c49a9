# The entry point of all commands. Each target makes its own prerequisites, so any target can be the first.
# `make` alone lists the targets.

PYTHON  ?= python3
PROFILE ?= shapes
BUDGET  ?= quick
NB      ?=
P       ?=
PORT    ?= 8000

# Users' values are passed to recipes through the environment, as text: "$$P" is a single word, whatever it contains.
override PROFILE := $(value PROFILE)
override BUDGET  := $(value BUDGET)
override NB      := $(value NB)
override P       := $(value P)
override PORT    := $(value PORT)
export PROFILE BUDGET NB P PORT

VENV  := .venv
BIN   := $(VENV)/bin
# This file exists, and is newer than its prerequisites, when the environment is complete.
READY := $(VENV)/.ready
# Other people's tools are pinned. Each has its own environment, with the same torch and onnxruntime.
TOOLS := _build/tools
PACKAGES_mct         := model-compression-toolkit==2.6.1 onnx==1.23.2 onnxscript==0.7.2
PACKAGES_aimet       := aimet-torch==2.42.0 onnx==1.23.2
PACKAGES_onnxruntime := onnx==1.23.2 sympy==1.14.0
PACKAGES_nncf        := nncf==3.4.0 onnx==1.23.2
PACKAGES_brevitas    := brevitas==0.13.4 onnx==1.23.2 onnxoptimizer==0.4.2 tqdm
PACKAGES_quark       := amd-quark==0.13 onnx==1.22.0 transformers==5.23.0 accelerate==1.15.0

.DEFAULT_GOAL := help
.PHONY: help setup book render results notebook test lint data checkpoints bench package serve lock clean

help: ## list the targets
	@echo "usage: make TARGET [NAME=value ...]"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "PROFILE  shapes (default, needs no data), cifar10, tiny_imagenet or imagenet_lite"
	@echo "BUDGET   smoke (seconds), quick (default), standard (hours) or paper (the paper's own settings)"
	@echo "PYTHON   the interpreter of the environment, 3.11 or later (default python3)"

setup: $(READY) ## install the locked packages into .venv (6 GB on disk)

book: $(READY) ## compute the runs without a record and build the book: PROFILE=shapes BUDGET=quick
	@$(BIN)/dgh book --profile "$$PROFILE" --budget "$$BUDGET"

render: $(READY) ## build the book from the records of results/ alone, without computing anything
	@$(BIN)/dgh book --recorded --profile "$$PROFILE" --budget "$$BUDGET"

results: $(READY) ## compute the records that the book shows and results/ lacks (hours, can be stopped): PROFILE=shapes
	@$(BIN)/dgh results --profile "$$PROFILE"

notebook: $(READY) ## run a notebook with your parameters: NB=table2 P="seeds=5"
	@test -n "$$NB" || \
		{ echo "name a notebook: make notebook NB=..., one of: $(basename $(notdir $(wildcard notebooks/*.ipynb)))" >&2; exit 1; }
	@$(BIN)/dgh notebook "$$NB" --words="$$P"

test: $(READY) ## run all tests
	@$(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(READY) ## check style and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

data: $(READY) ## download and verify a profile's data and networks: PROFILE=cifar10
	@$(BIN)/dgh data "$$PROFILE"

checkpoints: $(READY) ## train the embedded networks again
	@$(BIN)/python -m dghlib.training.classifiers
	@$(BIN)/python -m dghlib.training.detectors
	@$(BIN)/python -m dghlib.training.diffusion

bench: $(READY) $(foreach tool,mct aimet onnxruntime nncf brevitas quark,$(TOOLS)/$(tool)/.ready) ## measure the speed of the methods (hours); records go to results/benchmarks
	@$(BIN)/python -m benchmarks.generators --save
	@$(BIN)/python -m benchmarks.reconstruction --save
	@$(BIN)/python -m benchmarks.fine_tuning --save
	@$(BIN)/python -m benchmarks.transformers --save
	@$(BIN)/python -m benchmarks.hptq --save
	@$(BIN)/python -m benchmarks.chance --save
	@$(BIN)/python -m benchmarks.dgh_scale --save
	@$(BIN)/python -m benchmarks.dgh --save
	@$(BIN)/dgh data cifar10
	@$(BIN)/python -m benchmarks.dgh_quality --save
	@$(BIN)/python -m benchmarks.detectors --save
	@$(BIN)/dgh data imagenet_lite
	@$(BIN)/python -m benchmarks.peers --save

package: ## build the wheel and the source archive into _build/package, and test the wheel in its own environment
	@rm -rf _build/package _build/alone
	@$(PYTHON) -m venv _build/alone
	@_build/alone/bin/pip install --quiet --disable-pip-version-check uv
	@_build/alone/bin/uv build --quiet --out-dir _build/package
	@_build/alone/bin/uv tool run --quiet twine check --strict _build/package/*.whl _build/package/*.tar.gz
	@VIRTUAL_ENV=$(CURDIR)/_build/alone _build/alone/bin/uv pip install --quiet --torch-backend=cpu _build/package/*.whl
	@cd _build/alone && bin/dgh generate shapes_residual --out images.safetensors --set num_images=8 --set steps=2 && \
		bin/dgh quantize shapes_residual --images images.safetensors --out quantized.safetensors && \
		bin/dgh evaluate shapes_residual --quantized quantized.safetensors --num-images 96
	@ls -l _build/package

serve: _build/html/index.html ## serve the book at a local address: PORT=8000
	@echo "http://localhost:$$PORT until Ctrl-C"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html "$$PORT"

_build/html/index.html:
	@$(MAKE) --no-print-directory book

lock: $(READY) ## resolve pyproject.toml into requirements.lock
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-header --quiet --output-file requirements.lock

clean: ## remove the environments and the pages (records, images and data stay)
	rm -rf $(VENV) $(addprefix _build/,tools alone package executed first recorded notebooks book-src sphinx html) \
		.pytest_cache .mypy_cache .ruff_cache *.egg-info

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "dghlib needs Python 3.11 or later; name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot create environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "setting up $(VENV): packages first (6 GB on disk), then dghlib itself"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip sync --quiet --system-certs --require-hashes --compile-bytecode requirements.lock
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(TOOLS)/%/.ready: requirements.lock Makefile | $(READY)
	@echo "setting up $(TOOLS)/$* (6 GB on disk, shared with the cache of the package manager if the disk allows links)"
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(TOOLS)/$*
	@$(BIN)/uv pip install --quiet --system-certs --python $(TOOLS)/$*/bin/python $(PACKAGES_$*) \
		$$(grep -oE '^(torch|torchvision|onnxruntime)==[^ ]+' requirements.lock)
	@touch $@
