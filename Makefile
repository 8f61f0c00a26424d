# make help lists the commands. Everything is installed into .venv, nothing elsewhere.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
KERAS_VENV ?= .venv-keras

.DEFAULT_GOAL := help
.PHONY: help simulate lint test test-slow wheel bench gpu default-model clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/installed: requirements_pytorch.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -r requirements_pytorch.txt
	touch $@

$(VENV)/installed-tests: $(VENV)/installed requirements_test.txt
	$(VENV)/bin/pip install --quiet -r requirements_test.txt
	touch $@

simulate: $(VENV)/installed ## simulate an observation and find its pulses; results in simulation_output/
	$(RUN) pipeline_classifier/run_pipeline_simulation.py --output-dir simulation_output

lint: $(VENV)/installed-tests ## check style, format and types (ruff, mypy)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: lint ## lint, then run the tests (a few minutes)
	$(RUN) -m pytest

test-slow: lint ## lint, then run the tests, long ones included
	$(RUN) -m pytest -m 'slow or not slow'

wheel: $(VENV)/installed ## build the wheel into dist/
	rm -rf build # setuptools would pack what an earlier build left there
	$(VENV)/bin/pip wheel --quiet . --no-deps --wheel-dir dist

$(KERAS_VENV)/bin/python:
	$(PYTHON) -m venv $(KERAS_VENV)
	$(KERAS_VENV)/bin/pip install --quiet tensorflow==2.21.0 || rm -rf $(KERAS_VENV)

bench: $(VENV)/installed $(KERAS_VENV)/bin/python ## measure training and inference against Keras (ten minutes)
	KERAS_VENV=$(KERAS_VENV) $(RUN) tests/benchmarks/bench_training.py
	KERAS_VENV=$(KERAS_VENV) $(RUN) tests/benchmarks/bench_inference.py
	$(RUN) tests/benchmarks/bench_whole_job.py
	$(RUN) tests/benchmarks/bench_memory.py
	$(RUN) tests/benchmarks/bench_front_end.py
	$(RUN) tests/benchmarks/bench_ring.py
	$(RUN) tests/benchmarks/bench_soak.py

gpu: $(VENV)/installed-tests ## on a machine with a GPU: the tests that need one, and speed beside the CPU (ten minutes)
	$(RUN) -m pytest -m cuda
	$(RUN) tests/benchmarks/bench_gpu.py

default-model: $(VENV)/installed ## train the default model again (about two hours, 50 GB in /tmp)
	$(RUN) pipeline_classifier/make_default_model.py --work-dir /tmp/default_model

clean: ## remove the environments, the output of make simulate and build files
	rm -rf $(VENV) .venv-keras simulation_output build dist *.egg-info
