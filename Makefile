# Two commands: `make demo` and `make test` set up .venv, install, and run. PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-slow lint clean

demo: $(STAMP)
	$(BIN)/invsolve demo

# One process a core, each with one thread: many small tests gain more from that than from threads inside torch.
# The properties of one strategy share a run, so a group of them stays in one process.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --dist loadgroup -m "not slow"

# What takes long: processes that are killed, trainings, real scans, whole galleries.
test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --dist loadgroup -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and by its exact version: that wheel runs on the CPU and spares gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip "setuptools>=77"
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

clean:
	rm -rf .venv build demo_output *.egg-info
