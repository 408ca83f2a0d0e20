# Every target runs the set-up that it needs: a virtual environment in .venv with pinned requirements. To use another
# Python: make setup PYTHON=python3.12
PYTHON ?= python3
# what `make demo` prunes: segmentation, detection or classification
TASK ?= segmentation
# further options of pytest: make test PYTEST_ARGS="-k clique"
PYTEST_ARGS ?=
# processes that run tests at the same time; each takes up to 2 GB
WORKERS ?= 2
# plugins of packages that Detectron2 brings: no test uses them, and each process takes a second to load them
PYTEST = $(RUN) -m pytest tests -n $(WORKERS) --dist worksteal --durations=15 -p no:anyio -p no:hydra_pytest
RUN := .venv/bin/python
# a waiting thread releases its core after some 0.1 ms: to release it at once slows training down on an idle machine, and
# to keep it for milliseconds (GNU's default) slows training down on a machine that does other work
ifndef OMP_WAIT_POLICY
export GOMP_SPINCOUNT ?= 3000
endif
# where it is set, each process of the tests, and each program that they start, would compile all modules again
unexport PYTHONDONTWRITEBYTECODE
# `make docs` installs the tools for the website, in addition to what `make setup` installs
DOCS := .venv/.sirfp-docs
LOCK := uv pip compile --quiet --universal --python-version 3.10 --no-annotate --custom-compile-command "make lock"

.PHONY: help setup demo test test-all test-core lint types docs bench lock clean

help:
	@echo "make demo      prune a small trained network while training, fine-tune and report; further:"
	@echo "               TASK=detection or classification; SCRATCH=1 trains it from nothing; CONTROL=1 trains it on"
	@echo "make test      all tests except the slow ones"
	@echo "make test-all  all tests"
	@echo "make test-core every command with timm, installed from a wheel where Detectron2 is not installed"
	@echo "make lint      ruff"
	@echo "make types     mypy"
	@echo "make docs      build the website of the documentation in site/; fails on a broken link"
	@echo "make bench     measure the figures that the README quotes"
	@echo "make setup     only the set-up that all other targets run first: .venv with pinned requirements"
	@echo "make lock      resolve requirements/lock.txt and docs.txt again from setup.cfg"
	@echo "make clean     remove caches and build products; keeps .venv, output and datasets"

setup:
	@PYTHON="$(PYTHON)" sh requirements/setup.sh

demo: setup
	$(RUN) projects/demo/demo.py --task $(TASK) $(if $(SCRATCH),--scratch) $(if $(CONTROL),--control)

test: setup
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: setup
	$(PYTEST) $(PYTEST_ARGS)

test-core:
	PYTHON="$(PYTHON)" sh tests/without_detectron2.sh

lint: setup
	$(RUN) -m ruff check .

types: setup
	$(RUN) -m mypy

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 PATH="$(CURDIR)/.venv/bin:$$PATH" $(RUN) -m mkdocs build --strict

$(DOCS): requirements/docs.txt | setup
	$(RUN) -m pip install --quiet --no-deps -r requirements/docs.txt
	touch $@

bench: setup
	$(RUN) benchmarks/run.py

lock: setup
	$(RUN) -m pip install --quiet uv
	$(RUN) -m $(LOCK) --extra detectron2 --extra dev --extra bench --extra export --output-file requirements/lock.txt setup.cfg
	$(RUN) -c "import configparser as c; f = c.ConfigParser(); f.read('setup.cfg'); print(f['options.extras_require']['docs'])" \
		| $(RUN) -m $(LOCK) --constraint requirements/lock.txt --output-file requirements/docs.txt -

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
