# make rehearse   the pipeline of configs/rehearsal.yaml on a private Slurm of this host
# make drills     breaks runs on purpose, on private Slurms: python -m r1hpc.rehearsal drill --list
# make drills-ci  the same as small as makes sense, side by side
# make test       linters, types, import contracts, all tests
# make venv       the environment alone, in .venv
PYTHON ?= python3
BOOTSTRAP = $(PYTHON) r1hpc/rehearsal/bootstrap.py
BIN = .venv/bin

# Steps side by side.
TOGETHER = $(MAKE) --no-print-directory --output-sync=line --jobs

.PHONY: venv packages rehearse drills drills-ci test lint ruff types imports bench

venv:
	@$(BOOTSTRAP) venv

packages:
	@$(BOOTSTRAP) system --test

rehearse: venv
	@$(BOOTSTRAP) system
	@$(BIN)/python -m r1hpc.rehearsal rehearse configs/rehearsal.yaml

drills: venv
	@$(BOOTSTRAP) system
	@$(BIN)/python -m r1hpc.rehearsal drill

drills-ci: venv
	@$(BOOTSTRAP) system
	@OMP_NUM_THREADS=1 $(BIN)/python -m r1hpc.rehearsal drill --ci

lint: venv
	@$(TOGETHER) ruff types imports

ruff:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

imports:
	$(BIN)/lint-imports

test:
	@$(TOGETHER) venv packages
	@$(TOGETHER) ruff types imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 4 --dist loadscope --no-loadscope-reorder

bench: venv
	$(BIN)/python benchmarks/foundation.py --quick
