# shoal: `make help` lists what there is. Needs Go and GNU make; the tests install the rest.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
BIN     := bin/shoal
TOOLS    = $(shell deploy/tools/setup path)
lower    = $(shell echo $(1) | tr A-Z a-z)
# Tests of two packages at a time: the machines this runs on have two cores.
P       ?= 2
# Packages without the end-to-end tests, which start real processes.
UNIT     = $(shell $(GO) list ./... | grep -v /deploy/e2e)
# Packages with goroutines worth watching; -race costs several times the time, so -short.
RACE     = $(shell $(GO) list ./... | grep -v -e /deploy/ -e /cmd/)

# make lab: what is not given is as the scenario has it, or else a wave of 8 hosts, 100mbit, 64MiB
LABS    := SCENARIO HOSTS RATE SIZE LAYERS REGIONS SERVERS ZONES RTT SEED
LAB     ?=
# make sim: SCENARIO empty is all but the big ones, SEED 0 the scenario's own
SCENARIO ?=
SEED    ?= 0
# make faults: how long, timings, seed of the schedule (else the clock's); FAULTS= has further flags
DURATION ?= 1m
PROFILE ?= site
FAULTS  ?=
MUTANTS ?= all
# make noisy
NOISY   ?=
# make bench
SCALE   ?= 1
BENCH   ?=
# make fuzz: time for each target
FUZZTIME ?= 10s

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/shoal
	$(GO) build -trimpath -o $(BIN) ./cmd/shoal

.PHONY: run
run: build ## build and start `shoal dev` (ARGS="--regions 3 --agents 3" for more)
	exec $(BIN) dev $(ARGS)

.PHONY: tools
tools: ## install what the tests call: Debian packages (as root) and the pinned Go tools
	@deploy/tools/setup >/dev/null

.PHONY: test
test: tools check unit race e2e ## the one test command: checks, unit, race, then real clients when root
	@echo "make test: everything passed"

.PHONY: test-short
test-short: check ## checks and the quick half of the unit tests
	$(GO) test -short -p $(P) -timeout 10m $(UNIT)

.PHONY: check
check: ## gofmt, go vet, staticcheck (when its binary is there)
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not gofmt'ed:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	@if [ -x "$(TOOLS)/staticcheck" ]; then echo staticcheck ./...; "$(TOOLS)/staticcheck" ./...; \
	else echo "check: SKIPPED staticcheck (make tools builds it)"; fi

.PHONY: unit
unit: ## unit and in-process tests
	GO="$(GO)" deploy/tools/gotest quiet -p $(P) -timeout 20m $(UNIT)

.PHONY: race
race: ## the short tests of the rooms under the race detector
	@if $(GO) env CGO_ENABLED | grep -q 1 && command -v "$$($(GO) env CC)" >/dev/null; then \
	$(GO) build -race $(RACE); echo $(GO) test -race -short ...; GO="$(GO)" deploy/tools/gotest quiet -race -short -p $(P) -timeout 25m $(RACE); \
	else echo "race: SKIPPED, the race detector needs a C compiler"; fi

.PHONY: e2e
e2e: build ## end-to-end: real processes, real clients; parts are skipped aloud when not root
	SHOAL_BIN=$(abspath $(BIN)) SHOAL_TOOLS=$(TOOLS) GO="$(GO)" deploy/tools/gotest verbose -count=1 -timeout 60m ./deploy/e2e/...

.PHONY: e2e-full
e2e-full: tools build ## end-to-end with the large cases (5 GiB layer, more kills); checks free disk
	SHOAL_BIN=$(abspath $(BIN)) SHOAL_TOOLS=$(TOOLS) SHOAL_E2E=full GO="$(GO)" deploy/tools/gotest verbose -count=1 -timeout 90m ./deploy/e2e/...

.PHONY: lab
lab: build ## a wave in network namespaces (root): HOSTS= RATE= SIZE= REGIONS= SERVERS= ZONES= LAYERS= RTT= SEED=; or SCENARIO=wave16, ... (lab-list)
	$(GO) run ./deploy/lab --bin $(BIN) $(foreach v,$(LABS),$(if $($(v)),--$(call lower,$(v)) $($(v)))) $(LAB)

.PHONY: lab-all
lab-all: build ## every scenario of the lab in turn, figures against goals in one table (root; LAB=--quick for a first look)
	$(GO) run ./deploy/lab --bin $(BIN) --scenario all $(if $(SEED),--seed $(SEED)) $(LAB)

.PHONY: lab-list
lab-list: ## name the scenarios of `make lab SCENARIO=`
	@$(GO) run ./deploy/lab --list

.PHONY: faults
faults: build ## kills, pauses, partitions, disks under load, and is anything lost? (root): DURATION=1h PROFILE=site|wan SEED=7 FAULTS="--only kill,power-all" (--list)
	$(GO) build -o bin/faults ./deploy/lab/faults
	bin/faults --bin $(BIN) --duration $(DURATION) --profile $(PROFILE) $(if $(filter-out 0,$(SEED)),--seed $(SEED)) $(FAULTS)

.PHONY: mutants
mutants: ## small faults put into the product on purpose, each of which a round of faults must catch (root; MUTANTS=name,name SEED=7)
	$(GO) build -o bin/faults ./deploy/lab/faults
	bin/faults --mutants $(MUTANTS) --duration 3m --at-least 30 --agents 0 $(if $(filter-out 0,$(SEED)),--seed $(SEED)) $(FAULTS)

.PHONY: sim
sim: ## waves of 100 to 100,000 hosts in virtual time: SCENARIO=wave-2600 (go run ./deploy/sim --list) SEED=7
	$(GO) run ./deploy/sim --scenario "$(SCENARIO)" --seed $(SEED)

.PHONY: noisy
noisy: build ## two tenants at a server and an agent, one at ten times its rate: p50 and p99 of the other, before and during (NOISY=--unlimited: fair shares alone)
	$(GO) run ./deploy/noisy --bin $(BIN) $(NOISY)

VERSIONS ?= 1000000

.PHONY: scale
scale: build ## a package of VERSIONS=1000000 versions beside one of 100: publish, resolve, listings, restart, memory (--keep in SCALE_FLAGS= leaves the data)
	$(GO) run ./deploy/scale --bin $(BIN) --versions $(VERSIONS) $(SCALE_FLAGS)

.PHONY: bench
bench: build ## shoal beside the distribution registry on this machine: SCALE=0.1 for a quick look
	@deploy/tools/setup go >/dev/null
	$(GO) run ./deploy/bench --bin $(BIN) --tools $(TOOLS) --scale $(SCALE) $(BENCH)

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME
	@for package in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
	    echo "$$package $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$package; \
	  done; done

VULNDB ?= https://vuln.go.dev

.PHONY: vuln
vuln: ## known vulnerabilities of what is linked, but for those waived with a reason (dht/DESIGN.md); VULNDB= is another database
	@if ! curl -fsS -m 20 -o /dev/null "$(VULNDB)/index/db.json"; then \
	echo "vuln: SKIPPED, the vulnerability database $(VULNDB) cannot be reached from here"; exit 0; fi; \
	found=$$($(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0 -db "$(VULNDB)" ./... || true); echo "$$found"; \
	grep -q -e 'No vulnerabilities found' -e 'Vulnerability #' <<<"$$found" || { echo "vuln: govulncheck did not come to its end"; exit 1; }; \
	left=$$(grep -o 'Vulnerability #[0-9]*: GO-[0-9-]*' <<<"$$found" | grep -o 'GO-[0-9-]*' | grep -vx GO-2024-3218 || true); \
	if [ -n "$$left" ]; then echo "vuln: not waived:" $$left; exit 1; fi; echo "vuln: nothing that is not waived"

.PHONY: generate
generate: ## rewrite the record of imports (cmd/shoal/imports.txt); the law in it still applies
	$(GO) test ./cmd/shoal -run TestImportLaw -update-imports

.PHONY: clean
clean: ## remove what was built here (not the caches under ~/.cache)
	rm -rf bin .cache
