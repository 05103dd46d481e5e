# `make test` and `make demo` set up what they need by themselves; `make help` lists the rest.
CARGO ?= cargo
# What tests find the images in.
export III_TEST_IMAGES ?= $(or $(III_CACHE),$(HOME)/.cache/iii-dev)/images
FEATURES := --features process-launcher

.DEFAULT_GOAL := help
# One after the other: cargo and the emulated host each take the whole machine.
.NOTPARALLEL:
.PHONY: help setup build images fmt lint test test-fast test-kvm bench demo

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: ## Install what building and testing need (Debian packages, cargo-nextest, libkrunfw)
	@scripts/setup

build: ## The product: target/release/iii
	$(CARGO) build --release

images: setup ## The images that tests and the demo use
	@scripts/make-images

fmt: ## Format the code
	$(CARGO) fmt --all

lint: ## Format check and clippy, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets $(FEATURES) -- -D warnings

test-fast: images ## All tests but the real microVMs
	$(CARGO) nextest run --workspace $(FEATURES)
	$(CARGO) test --quiet --doc --workspace $(FEATURES)

test-kvm: images ## The tests with real microVMs, as root and as an ordinary user
	@CARGO="$(CARGO)" scripts/test-kvm

test: setup lint test-fast test-kvm ## Everything: lint and all four tiers of tests

bench: images ## Speed and memory beside the floor and the peers; needs an otherwise idle machine
	@CARGO="$(CARGO)" scripts/bench

demo: images ## The main story, with real microVMs, as a transcript
	@CARGO="$(CARGO)" scripts/demo
