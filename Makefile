# Vigie. `make demo` sets up and runs the main job; `make test` sets up and
# passes the tests; `make help` lists the rest.
SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
GO          ?= go
BIN         := bin/vigie
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS     := -s -w -X main.version=$(VERSION)
# Where the development data lie, for the tests and recipes that use them.
VIGIE_DATA  ?= $(abspath ../shared/data)
export VIGIE_DATA
# Where property tests begin (pgregory.net/rapid): the same cases in every run.
# RAPID_SEED=0 tries others.
RAPID_SEED  ?= 1
export RAPID_SEED
# Inputs that each fuzz target tries in `make fuzz`. A number and not a time: at
# the end of a time, Go before 1.27 may call a target failed that found nothing
# (golang/go#75804).
FUZZTIME    ?= 20000x
# A real chest radiograph, fetched by the Go tool; never part of this repository.
RADIOGRAPH_MODULE := github.com/suyashkumar/dicom@v1.1.0

.PHONY: help build demo demo-serve test check unit race fuzz bench model setup-peers clean
.DEFAULT_GOAL := help

include engine/runtime/prepare.mk

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

build: runtime ## build bin/vigie, one binary with ONNX Runtime inside
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/vigie

demo: build ## set up a throw-away hospital, send it studies, show every answer and verify the log
	@radiograph=$$($(GO) mod download -json $(RADIOGRAPH_MODULE) | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')/testdata/4.dcm; \
	$(BIN) demo --radiograph "$$radiograph" $(DEMOFLAGS)

demo-serve: ## the same, and leave the gateway running
	@$(MAKE) --no-print-directory demo DEMOFLAGS=--serve

# What continuous integration runs. The fuzz targets' seeds are tests like others;
# a few new inputs are tried as well, by number and not by time
# (https://github.com/golang/go/issues/75804). `make fuzz` tries many.
test: check unit race ## vet, static analysis, every test, the race detector, a little fuzzing
	@$(MAKE) --no-print-directory fuzz FUZZTIME=1000x

check: runtime ## formatting, vet, staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not gofmt'ed: $$unformatted" >&2; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

unit: runtime ## every test, without the race detector
	@$(GO) mod download $(RADIOGRAPH_MODULE) || echo "the real radiograph is not to be had: the tests that use it will skip" >&2
	$(GO) test -timeout 30m ./...

# The race detector runs where goroutines share state.
race: runtime ## the concurrent packages under the race detector, short
	$(GO) test -race -short -timeout 30m ./engine ./train ./medical/dicom/dimse ./medical/dicom/dicomweb ./keys/... ./store ./audit ./enclave ./gateway ./federate ./federate/secagg ./federate/wire ./federate/consortium

fuzz: runtime ## try FUZZTIME new inputs on each fuzz target; run it before a release
	@output=$$(mktemp); trap 'rm -f "$$output"' EXIT; \
	for package in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$package 2>/dev/null | grep '^Fuzz' || true); do \
	    echo "fuzz $$package $$target $(FUZZTIME)"; \
	    $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$package >"$$output" 2>&1 || { cat "$$output" >&2; exit 1; }; \
	  done; \
	done

bench: build ## the benchmarks beside their peers, as a table
	$(GO) run ./bench

model: build ## train the demo model again (needs VIGIE_DATA) and seal its package
	scripts/model.sh

setup-peers: ## install the real peers that some tests talk to (Debian packages)
	scripts/setup-peers.sh

clean: ## remove what was built
	rm -rf bin node_modules engine/runtime/*.gz
