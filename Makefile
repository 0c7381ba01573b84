# make install    create a virtual environment in .venv and install; every other target but clean does it first
# make run        repair the shipped model from shipped photographs, with its kit and without
# make test       run the quick tests in the same environment; no other data is needed
# make test-slow  run the tests marked slow: most tests that start Ray, benchmarks, large images
# make check      check format, lint, types and documentation, then make test
# make docs       build the documentation as a site: site/index.html opens without a network
# make accept     run the tests that need the full CIFAR-10 (METAREPAIR_DATA), and the long runs
# make clean      delete the virtual environment, the site, and what builds and tools left

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: run test test-slow check docs accept install clean
install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13) and "MetaRepair needs Python 3.11 or 3.12: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $(READY)

# The same photographs twice: with the shipped repair kit, then without one, in a budget that is cut small.
PHOTOGRAPHS := --images tasks/sample/photographs.parquet --holdout tasks/sample/photographs_later.parquet --keep-ok
KIT := metarepair/weights/resnet8_cifar10.kit

run: $(READY)
	$(BIN)/metarepair fix --kit shipped:resnet8_cifar10 $(PHOTOGRAPHS) --out runs/with_kit
	$(BIN)/metarepair fix --model resnet8_cifar --weights shipped:resnet8_cifar10 \
		--clean $(KIT)/pack/clean/test.parquet --classes airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck \
		--mean 0.4914 0.4822 0.4465 --std 0.2470 0.2435 0.2616 $(PHOTOGRAPHS) --budget 150s --out runs/without_kit

# Two processes; a file's tests stay in one of them, so that what they share is made once (order: tests/conftest.py).
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(READY)
	$(PYTEST) -m 'not slow and not full_data and not gpu and not soak'

test-slow: $(READY)
	$(PYTEST) -m 'slow and not full_data and not gpu and not soak'

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) docs
	$(MAKE) test

# Strict: a warning or a dead link is an error. Not --quiet, which would hide warnings from --strict.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

accept: $(READY)
	$(BIN)/python -m pytest -m 'full_data or soak'
	METAREPAIR_KILLS=5 $(BIN)/python -m pytest tests/distributed/test_killed.py tests/e2e/test_any_moment.py
	$(BIN)/metarepair run --config tune_configs/cifar10_small.yaml
	$(BIN)/python -m benchmarks.fid --quick
	$(BIN)/python -m benchmarks.meta_gradient --quick --without higher --without torchopt

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
