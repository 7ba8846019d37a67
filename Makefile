# Insula. `make help` lists what is supported; everything else is private.
.DEFAULT_GOAL := help
PY := .venv/bin/python
# `make` must not inherit somebody's Python settings.
unexport PYTHONPATH PYTHONHOME

.PHONY: help setup run test check fmt lint types unit contract fault vm desktop fuzz bench docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install Debian packages and the locked Python environment (nothing is started)
	@scripts/setup

run: setup ## Build the template, create and start four qubes, show that they are islands, and their windows
	@scripts/demo

test: setup ## Everything: lint, types, unit, contract, fault, real-guest and real-screen tests
	@scripts/test

check: setup lint types unit ## What to run before a commit (under two minutes)

fmt: setup ## Format the code
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

lint: setup ## Style and common mistakes
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .

types: setup ## Static types, strict
	.venv/bin/mypy

unit: setup ## Pure tests: no VM, no root
	$(PY) -m pytest tests/unit

contract: setup ## Every driver against the same checks
	$(PY) -m pytest tests/contract

fault: setup ## Kills, full disks, broken peers
	$(PY) -m pytest tests/fault

vm: setup ## Real guests under QEMU
	$(PY) -m pytest tests/vm

desktop: setup ## Real windows on a real X server and window manager, without a screen
	$(PY) -m pytest tests/desktop

fuzz: setup ## Longer runs of every fuzz target (FUZZ_SECONDS each, 60 if unset)
	@for target in tests/fuzz/fuzz_*.py; do $(PY) $$target --seconds $${FUZZ_SECONDS:-60} || exit 1; done

bench: setup ## All benchmarks, written to docs/benchmarks.md
	$(PY) benchmarks/run_all.py

docs: setup ## Regenerate the generated pages in docs/
	$(PY) scripts/generate_docs.py

clean: ## Remove the environment and caches (qubes and templates stay: see `insula down`)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
