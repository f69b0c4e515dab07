# Every target except clean sets up .venv first, which needs only Python 3.11 or newer, make and a package registry.
.PHONY: demo test serve bench lint clean
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# Without this, BentoML reports usage to its makers.
export BENTOML_DO_NOT_TRACK ?= True

demo: $(VENV)/ready
	$(BIN)/python examples/demo.py

test: $(VENV)/ready
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

serve: $(VENV)/ready
	$(BIN)/bentoml serve $(ARGS)

bench: $(VENV)/ready
	$(BIN)/python -m export --set five --weights auto --precision fp32,int8
	$(BIN)/python -m benchmarks run --set five --precision fp32,int8 --batch 1,4,16 --brief --out .podium/bench.json $(ARGS)
	$(BIN)/python -m benchmarks report .podium/bench.json --out .podium/report

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .podium build *.egg-info models/*.so

# BentoML 1.4.40 asks for certifi 2026.10.19 or newer, because that has no emSign roots any more. That version is not on
# the registry. 2026.10.18 is, and it lacks the same four roots (tests/test_setup.py checks). pip cannot override a
# requirement, so it is changed in the installed package's own list before the rest is resolved.
EXTRAS ?= cpu,export,tensorrt-rtx,bench,peers,peers-ray,bulk,demo,dev
$(VENV)/ready: pyproject.toml Makefile models/_resample.c
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Podium needs Python 3.11 or newer; pass PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'torch==2.13.0'
	$(BIN)/python -m pip install --quiet --no-deps 'bentoml==1.4.40'
	sed -i.orig 's/certifi>=2026.10.19/certifi>=2026.10.18/' $(VENV)/lib/python*/site-packages/bentoml-*.dist-info/METADATA
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@
