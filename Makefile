# Every target does the set-up it needs: a virtual environment in .venv with pinned requirements. Another Python than
# python3: make setup PYTHON=python3.12
PYTHON ?= python3
# more for pytest: make test PYTEST_ARGS="-k clique"
PYTEST_ARGS ?=
RUN := .venv/bin/python
# threads that wait give their core away: on a shared machine training is several times faster
export OMP_WAIT_POLICY = passive

.PHONY: help setup demo test test-all lint bench lock clean

help:
	@echo "make demo      train, prune and report a small segmentation network (minutes)"
	@echo "make test      the tests but for the slow ones"
	@echo "make test-all  all tests"
	@echo "make lint      ruff"
	@echo "make bench     the figures that the README quotes"
	@echo "make setup     only the set-up that all of these do: .venv with pinned requirements"
	@echo "make lock      resolve requirements/lock.txt anew from setup.cfg"
	@echo "make clean     remove caches and build products; .venv, output and datasets stay"

setup:
	@PYTHON="$(PYTHON)" sh requirements/setup.sh

demo: setup
	$(RUN) projects/segmentation/demo.py

test: setup
	$(RUN) -m pytest tests -m "not slow" $(PYTEST_ARGS)

test-all: setup
	$(RUN) -m pytest tests $(PYTEST_ARGS)

lint: setup
	$(RUN) -m ruff check .

bench: setup
	$(RUN) benchmarks/run.py

lock: setup
	$(RUN) -m pip install --quiet uv
	$(RUN) -m uv pip compile --quiet --universal --python-version 3.10 --extra dev --extra bench \
		--no-annotate --custom-compile-command "make lock" --output-file requirements/lock.txt setup.cfg

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
