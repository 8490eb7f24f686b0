# Two commands do it all: `make demo` and `make test`. Both set up what they need first (deploy/bootstrap).

ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 4
MIN ?= 10
BIN := .venv/bin
# Whatever the shell says: a run of the suite starts hcc 700 times, and to compile it each time takes two thirds more.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test test-matrix lint docs faults soak bench-smoke bench-change bench-path bench-authz bench-spoe bench-churn bench-sizing lock clean

help: ## this list
	@echo "usage: make TARGET"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## the example for real: two sidecars, Consul, allow and deny (make demo ARGS=--keep)
	@programs=$$(deploy/bootstrap --print-env) && set -a && eval "$$programs" && exec $(BIN)/python deploy/demo/run $(ARGS)

test: ## the whole suite with real binaries (PYTEST_ARGS="-k name" narrows it)
	@deploy/bootstrap --tests
	@$(MAKE) --no-print-directory lint
	@programs=$$(deploy/bootstrap --tests --print-env 2>/dev/null) && set -a && eval "$$programs" \
	  && exec $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-matrix: ## every end-to-end test on every HAProxy, the example's cases on each with each control and Consul (45 min)
	@programs=$$(deploy/bootstrap --tests --print-env) && set -a && eval "$$programs" \
	  && E2E_HAPROXY=$${E2E_HAPROXY:-all} exec $(BIN)/python -m pytest -n $(WORKERS) \
	    --dist loadfile --no-loadscope-reorder tests/e2e

lint: ## ruff, mypy and the layers (set up by make test or deploy/bootstrap --tests)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: ## docs/metrics.md, docs/flags.md and the man page, from the code (a test says when it is due)
	$(BIN)/python -m tests.metrics_reference
	$(BIN)/python deploy/reference
faults: ## every fault under load, and docs/faults.md from what was found (15 min, root)
	@rm -f build/faults.jsonl; mkdir -p build
	@programs=$$(deploy/bootstrap --tests --print-env) && set -a && eval "$$programs" && FAULT_RECORDS=build/faults.jsonl \
	  && $(BIN)/python -m pytest -n 0 -p tests.e2e.faults.recorder --timeout 300 tests/e2e/test_fault_table.py \
	    $$($(BIN)/python -c 'from tests.e2e.faults.references import REFERENCES as r; print(*{one.test.split("::")[0] for one in r})'); \
	  result=$$?; $(BIN)/python -m tests.e2e.faults.report build/faults.jsonl docs/faults.md && exit $$result

soak: ## churn, rotations, kills and load together for MIN minutes; memory, files and processes must stay flat (root)
	@programs=$$(deploy/bootstrap --tests --print-env) && set -a && eval "$$programs" && SOAK_MINUTES=$(MIN) \
	  && exec $(BIN)/python -m pytest -n 0 --timeout 0 -s tests/e2e/test_soak.py

bench-smoke: ## start-up, memory and requests/s of one pair of sidecars, to build/bench/
	@programs=$$(deploy/bootstrap --tests --print-env) && set -a && eval "$$programs" \
	  && exec $(BIN)/python -m tests.bench.smoke $(ARGS)

bench-path: ## the data path against a hand-tuned HAProxy pair, Consul's built-in proxy and none (6 min; ARGS=--quick 2)
	@programs=$$(deploy/bootstrap --tests --print-env) && set -a && eval "$$programs" \
	  && exec $(BIN)/python -m tests.bench.path $(ARGS)

bench-spoe: ## questions/s, latency and memory of one SPOE worker, to build/bench/ (1 min)
	@deploy/bootstrap --tests
	@exec $(BIN)/python -m tests.bench.spoe $(ARGS)

bench-change: ## what one more endpoint costs, step by step, with 10 to 10,000 endpoints, to build/bench/ (2 min)
	@programs=$$(deploy/bootstrap --tests --print-env) && set -a && eval "$$programs" \
	  && exec $(BIN)/python -m tests.bench.change $(ARGS)

bench-authz: ## what authorisation costs, and how soon a changed intention is enforced (4 min)
	@programs=$$(deploy/bootstrap --tests --print-env) && set -a && eval "$$programs" \
	  && exec $(BIN)/python -m tests.bench.authz $(ARGS)

bench-churn: ## endpoints, upstreams and certificates change under load, both controls (20 min; ARGS=--quick: 2)
	@programs=$$(deploy/bootstrap --tests --print-env) && set -a && eval "$$programs" \
	  && exec $(BIN)/python -m tests.bench.churn $(ARGS)

bench-sizing: ## memory, connections and processor time by what a sidecar has to do, for docs/sizing.md (2 min)
	@programs=$$(deploy/bootstrap --tests --print-env) && set -a && eval "$$programs" \
	  && exec $(BIN)/python -m tests.bench.sizing $(ARGS)

lock: ## pin the newest versions that pyproject.toml allows (needs uv on PATH)
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --extra haproxy --group build pyproject.toml -o deploy/requirements/run.txt
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --extra haproxy --group dev pyproject.toml -o deploy/requirements/test.txt

clean: ## delete what was made in this folder, .venv included (the cache stays)
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
