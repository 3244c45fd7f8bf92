# The shop and the mesh. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

CONTRACTS := $(addprefix gen/python/pizza/,order kitchen delivery)
DISTRIBUTIONS := libs/grpcmesh libs/txstore $(addprefix services/,order kitchen delivery all_in_one) cli
READY := $(VENV)/ready
GO_PROGRAMS := $(VENV)/go-programs

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s  %s\n", $$1, $$2}'

$(READY): requirements/dev.txt $(addsuffix /pyproject.toml,$(DISTRIBUTIONS))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV)"
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation $(addprefix --editable ./,$(DISTRIBUTIONS))
	@touch $@

.PHONY: setup
setup: $(READY) ## the virtual environment, with everything that development needs

# They render and judge the manifests. Without them those tests are skipped, and in CI they fail.
$(GO_PROGRAMS): requirements/go.txt | $(READY)
	@echo "building the programs of $<"
	@if GOBIN=$(CURDIR)/$(BIN) xargs -n 1 go install <$<; then touch $@; \
	else echo "LEFT OUT: the tests of manifests, which need Go and its modules" >&2; fi

.PHONY: up
up: $(READY) ## the whole shop in one process, order on localhost:8080
	@tools/up all-in-one

.PHONY: up-split
up-split: $(READY) ## the shop as three processes, order on localhost:8080
	@tools/up split

.PHONY: up-kitchen up-delivery up-order
up-kitchen: ## one service alone, as its own process (also up-delivery and up-order)
up-kitchen up-delivery up-order: $(READY)
	@tools/up $(@:up-%=%)

.PHONY: certs
certs: $(READY) ## a development CA and a certificate for each service, in .data/certificates
	@python3 -m grpcmesh.authority --trust-domain pizza.local .data/certificates order kitchen delivery

# The tests wait more than they compute, so that lint and types go beside them, and more of them than there are cores.
WORKERS ?= 3
.PHONY: test lint tests
test: $(READY) $(GO_PROGRAMS) ## everything that must hold: lint, types, architecture, gen/ current, tests
	@$(MAKE) --no-print-directory --jobs 2 tests lint

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	pylint $(foreach s,order kitchen delivery,services/$(s)/$(s))
	@$(MAKE) --no-print-directory proto-check

tests: $(READY) $(GO_PROGRAMS)
	pytest --numprocesses $(WORKERS) --dist loadfile --ignore tests/images

SEED ?= 1
SCHEDULES ?= 10000
.PHONY: simulate
simulate: $(READY) ## fulfilment through SCHEDULES (10000) seeded schedules of faults, from SEED (1) on; a tenth over the real store
	@$(BIN)/python -m tests.simulation --schedules $(SCHEDULES) --seed $(SEED)
	@$(BIN)/python -m tests.simulation --schedules $$(($(SCHEDULES) / 10)) --seed $(SEED) --store real

ORDERS ?= 2000
KILLS ?= 100
STORE ?= sqlite
REPLICAS ?= 1
.PHONY: chaos
chaos: $(READY) ## ORDERS (2000) under KILLS (100) SIGKILLs, as SEED (1) says; STORE=postgres [REPLICAS=2] kills that too
	@$(BIN)/python -m tests.chaos --seed $(SEED) --orders $(ORDERS) --kills $(KILLS) --store $(STORE) --replicas $(REPLICAS)

NAMES ?=
.PHONY: mutants
mutants: $(READY) $(GO_PROGRAMS) ## plant each fault of tests/mutants (NAMES: those that begin so); the tests must see all
	@$(BIN)/python -m tests.mutants $(NAMES) $(if $(SAMPLE),--sample $(SAMPLE))

RESTARTS ?= 24
.PHONY: drain
drain: $(READY) ## restart two kitchens under load, RESTARTS (24) times each, and count the calls that are lost
	RESTARTS=$(RESTARTS) pytest --capture=no --timeout=900 tests/e2e/test_drain.py

.PHONY: format
format: $(READY) ## format the Python code and the contract
	ruff check --fix-only .
	ruff format .
	buf format --write proto

.PHONY: third-party
third-party: $(READY) ## fetch the third-party .proto files (needs Go or the Buf registry)
	@python3 tools/third_party.py

.PHONY: proto
proto: third-party ## lint the contract and generate gen/ from it
	buf lint
	buf format --diff --exit-code proto
	buf generate

# Without third-party protos nothing can be generated; CI must not pass over it.
.PHONY: proto-check
proto-check: $(READY)
	@if python3 tools/third_party.py; then tools/gen_is_current; \
	elif [ -n "$$CI" ]; then exit 1; \
	else echo "LEFT OUT: the check that gen/ is current (see the line above)"; fi

.PHONY: states
states: $(READY) ## draw docs/states.md from the tables of the services' domains
	@python3 tools/states.py >docs/states.md

.PHONY: bench
bench: $(READY) ## what the mesh costs a call
	@PYTHONPATH=. python3 bench/mesh_cost.py

.PHONY: growth
growth: $(READY) ## what the stores' work costs with 1,000,000 orders, beside 1,000
	@python3 bench/growth.py

.PHONY: e2e-kind
e2e-kind: $(READY) ## the shop on the kind cluster, from outside (needs grpcurl)
	KIND_CONTEXT=kind-pizza pytest tests/cluster

BASE ?= main
.PHONY: breaking
breaking: third-party ## what the contract changes since BASE (main) that breaks a caller, policy included
	@tools/breaking $(BASE)

.PHONY: cluster cluster-down
cluster: ## a kind cluster for `tilt up`, where it is missing (KIND_IMAGE names another node image)
	@tools/cluster up
cluster-down: ## remove it
	@tools/cluster down

IMAGES := order kitchen delivery
.PHONY: images $(addprefix image-,$(IMAGES))
images: $(addprefix image-,$(IMAGES)) ## the container images pizza-order, pizza-kitchen and pizza-delivery
$(addprefix image-,$(IMAGES)):
	docker build --file services/$(@:image-%=%)/Dockerfile --tag pizza-$(@:image-%=%) .

.PHONY: test-images
test-images: $(READY) ## build each image, look into it, start it and stop it (needs Docker)
	DOCKER=needed pytest tests/images

.PHONY: deploy
deploy: cluster certs images ## the production-like overlay on the kind cluster
	@tools/deploy

# An image installs what its service needs, in the versions that everything was tested with; build.txt is for its build
# stage, reload.txt for its dev stage.
COMPILE := uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 \
  $(foreach name,grpcmesh txstore $(foreach s,order kitchen delivery,pizza-$(s)-contract pizza-$(s)),--no-emit-package $(name))
.PHONY: lock
lock: $(READY) ## resolve the dependencies again into requirements/
	$(COMPILE) $(addsuffix /pyproject.toml,$(CONTRACTS) $(DISTRIBUTIONS)) requirements/dev.in --output-file requirements/dev.txt
	$(foreach s,order kitchen delivery,$(COMPILE) --constraint requirements/dev.txt services/$(s)/pyproject.toml --output-file requirements/$(s).txt && )true
	echo hatchling | $(COMPILE) --constraint requirements/dev.txt - --output-file requirements/build.txt
	echo watchfiles | $(COMPILE) --constraint requirements/dev.txt - --output-file requirements/reload.txt

.PHONY: clean
clean: ## remove the virtual environment, caches and the shop's data
	rm -rf $(VENV) third_party .data .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
