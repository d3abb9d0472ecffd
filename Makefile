# `make demo`, `make test`, `make bench`: each installs what it needs; run them as root on Debian 12 or later.

PYTHON := /usr/bin/python3
VENV   := .venv
BIN    := $(VENV)/bin
SOURCES := src services compose tests

.PHONY: demo demo-down test fuzz faults bench bench-quick soak check-images lint format lock clean

# DEMO_ARGS=--secure: with three members of etcd, TLS, and a role for each service.
demo: $(VENV)/.installed
	$(BIN)/tidegate demo $(DEMO_ARGS)

demo-down: $(VENV)/.installed
	$(BIN)/tidegate playground down

test: $(VENV)/.installed
	$(BIN)/pytest $(PYTEST_ARGS)

# Other packets, records and objects each time, for so many minutes or until something is found.
MINUTES := 10

fuzz: $(VENV)/.installed
	$(BIN)/python -m tests.fuzz $(MINUTES)

# What happens when something fails, and what clients see of it: the table of docs/faults.md, each line by its test.
faults: $(VENV)/.installed
	$(BIN)/pytest -q -m fault -p tests.fault_table tests/cluster $(PYTEST_ARGS)

# BENCH_ARGS="--only 'requests-*'" measures a part; `$(BIN)/python -m tests.bench page build/bench.json docs/performance.md`
# writes the tables of a run into the page.
bench: $(VENV)/.installed
	$(BIN)/python -m tests.bench run --json build/bench.json $(BENCH_ARGS)

bench-quick: $(VENV)/.installed
	$(BIN)/python -m tests.bench run --size quick --json build/bench-quick.json $(BENCH_ARGS)

# Half an hour of changes: memory, the agent's maps, etcd's database. SOAK_ARGS="--minutes 5 --scale 0.02" for a shorter one.
soak: $(VENV)/.installed
	$(BIN)/python -m tests.scale.soak $(SOAK_ARGS)

# The steps of the Dockerfile in trees of debootstrap's, and compose/docker in them: what is missing in an image shows
# without a container engine.
check-images: $(VENV)/.installed
	command -v debootstrap >/dev/null || apt-get install -y -q --no-install-recommends debootstrap
	$(BIN)/python -m tests.deploy $(IMAGES_ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports

format: $(VENV)/.installed
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# The locks name versions and hashes, no index: pip takes them from wherever it is set up to look.
lock: $(VENV)/.installed
	$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --extra dev --build-deps-for wheel \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header -o requirements.lock pyproject.toml
	$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --build-deps-for wheel -c requirements.lock \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header -o requirements-runtime.lock pyproject.toml

$(VENV)/.installed: requirements.lock requirements-kubectl.lock pyproject.toml compose/playground/install.sh
	PYTHON=$(PYTHON) VENV=$(VENV) compose/playground/install.sh
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
