# Llamero: build, test and show it. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --warn-undefined-variables

LOCAL := .local
NODES ?= 3

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  \033[1m%-18s\033[0m %s\n", $$1, $$2}'

include tests/cluster/cluster.mk
include worker/checkpoint/model.mk
include tests/gpu-emulator/gpu.mk

.PHONY: demo demo-down
demo: ## Start a real cluster, install Llamero, serve SmolLM2 over two nodes, kill a rank and watch it go on
	@tests/demo.sh

demo-down: cluster-down ## Stop everything that `make demo` left running

.PHONY: test test-lint test-unit test-cluster test-long
test: ## Everything that must hold before a change lands (lint, unit, real model, real cluster)
	@tests/test.sh

test-lint: ## Formatting, clippy, generated files, chart
	@tests/test.sh lint

test-unit: ## Unit, property and real-model tests of all crates
	@tests/test.sh unit

test-cluster: ## End-to-end tests on a real local Kubernetes
	@tests/test.sh cluster

test-long: ## The same with every combination and every write cut (hours)
	@tests/test.sh long

SEED ?= $(shell date +%s)
MINUTES ?= 5
.PHONY: chaos
chaos: model ## Faults on a schedule on a real cluster, under 64 streams: make chaos SEED=7 MINUTES=5
	@tests/chaos.sh $(SEED) $(MINUTES)

.PHONY: generate
generate: ## Generate the CRDs, the chart's copy and the kustomize base
	@tests/generate.sh

.PHONY: sbom
sbom: ## Write what Llamero is made of as CycloneDX files to .local/sbom
	@tests/supply-chain/sbom.sh

.PHONY: bench-engine
bench-engine: model ## Decode and prefill speed beside this machine's own bounds
	@tests/bench-engine.sh

.PHONY: bench-gateway
bench-gateway: ## The gateway beside smg: requests a CPU second, latency, long prompts, memory (SECONDS_EACH=, RATE=, STREAMS=)
	@tests/bench-gateway.sh

.PHONY: bench-passes bench-control
bench-passes: ## What a pass of the operator costs, and what it holds in memory
	@cargo run --locked --quiet --release --workspace --example passes

bench-control: cluster-build ## The operator at 1,000 pods on a real API server, beside a plain Deployment (PODS=, NODES=, FOREIGN=)
	@tests/bench-control.sh
