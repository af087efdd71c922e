# Every target builds the environment that it needs. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
# DVC runs a stage's command as it stands in dvc.yaml, so `python` must be the environment's.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help env env-all repro parallel progress plots test test-all lint variants table smoke faults evidence bench bench-short clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# A stamp is newer than both files exactly when its part of the environment is up to date. The
# pipeline needs few packages; Snakemake and the tools for tests come when a target needs them.
PIP := .venv/bin/python -m pip
.venv/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"Python 3.11 or newer is needed; name it: make PYTHON=python3.12 ...")'
	$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(PIP) install --upgrade 'pip>=25.1'
	$(PIP) install --group pipeline --constraint constraints.txt
	touch $@

.venv/.stamp-all: .venv/.stamp
	$(PIP) install --group dev --constraint constraints.txt
	touch $@

env: .venv/.stamp  ## build the environment in .venv, or bring it up to date
env-all: .venv/.stamp-all  ## the same, with Snakemake and all that tests need

# DVC's page of charts, with the chart library in it. DVC's own page loads the library from the
# network.
.dvc/plots/page.html: .venv/.stamp tools/page.py tools/page.html
	python -m tools.page

repro: .venv/.stamp .dvc/plots/page.html  ## run the whole pipeline, or what changed of it
	python -m tools.mend
	dvc repro

# On two processors, two trainings side by side with one thread each were 1.15 times as fast as one
# after the other with two threads (docs/performance.md).
PROCESSORS := $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
JOBS ?= $(PROCESSORS)

parallel: .venv/.stamp-all .dvc/plots/page.html  ## as repro, but JOBS=N stages at a time; by default one per processor
	@[[ '$(JOBS)' =~ ^[1-9][0-9]*$$ ]] || { echo 'JOBS is a number, 1 or more: not $(JOBS)' >&2; exit 2; }
	threads=$$(($(PROCESSORS) < $(JOBS) ? 1 : $(PROCESSORS) / $(JOBS))); \
	snakemake --cores $$(($(JOBS) * threads)) --set-threads train=$$threads evaluate=$$threads

progress: .venv/.stamp  ## print how far each training is, also while it runs
	@python -m tools.progress

plots: .venv/.stamp .dvc/plots/page.html  ## make the page of all charts, dvc_plots/index.html
	dvc plots show

test: .venv/.stamp-all  ## run the quick tests
	pytest -n auto --maxprocesses 4 -m 'not slow'

# Four workers even on two processors, since slow tests spend much of their time waiting for Slurm or a lock.
test-all: test  ## run all tests: also kills, full disks, Snakemake, Slurm, Chromium
	pytest -n 4 -m slow

lint: .venv/.stamp-all  ## check format, lint, types, and the workflows of GitHub
	ruff format --check
	ruff check
	mypy
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

variants: .venv/.stamp  ## one DVC experiment per variant, for `dvc metrics diff sgd adam`
	python -m tools.variants

table: .venv/.stamp  ## print README's table of results
	python -m tools.table

smoke: .venv/.stamp  ## the real pipeline in small, in a copy that it names: a few minutes
	python -m tools.smoke

faults: .venv/.stamp-all  ## kill `make repro` a hundred times at random, run it again, compare the bytes
	KILLS=100 pytest -n 0 -s tests/test_kills.py

evidence: .venv/.stamp-all  ## do the trainings of evidence/protocol.md that are missing, then give the verdicts
	snakemake --snakefile evidence/Snakefile --workflow-profile none --cores 2 --keep-going --nolock \
		--rerun-incomplete --rerun-triggers mtime

bench: .venv/.stamp-all  ## time the training beside other ways to do it (an hour; bench-short: minutes)
	python -m bench --road --memory --images 1500 --write

bench-short: .venv/.stamp-all
	python -m bench --images 256

clean:  ## remove the environment, DVC's page and the tools' caches; data and results stay
	rm -rf .venv dvc_plots .mypy_cache .ruff_cache .pytest_cache .hypothesis
