# afterimage: three commands on a fresh machine, `make demo`, `make demo-real` and `make test`. They find and install what is
# missing.
# All cargo calls share one profile and one target directory, so that RocksDB is compiled once.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# rustup's place, behind whatever the caller prefers.
export PATH := $(PATH):$(HOME)/.cargo/bin
export CARGO_TERM_COLOR ?= auto

# Where cargo builds: the caller's choice, or ./target.
TARGET := $(or $(CARGO_TARGET_DIR),target)
DENY_VERSION := 0.20.2
DENY := $(TARGET)/tools/cargo-deny-$(DENY_VERSION)/bin/cargo-deny

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: ## Everything on one machine, nothing to configure; ARGS="--help" lists its options
	@.ci/packages build
	@cargo build
	@exec $(TARGET)/debug/afterimage demo $(ARGS)

# Which Debezium: 2.7 or 3.7.
DEBEZIUM ?= 2.7

.PHONY: demo-real
demo-real: ## The same on real Kafka with real Debezium, DEBEZIUM=2.7 (what Heroku runs) or 3.7; about a minute
	@.ci/packages demo-real
	@cargo build
	@exec $(TARGET)/debug/afterimage demo --capture debezium --debezium "$(DEBEZIUM)" $(ARGS)

.PHONY: build
build: ## The program, as target/debug/afterimage
	@.ci/packages build
	cargo build

.PHONY: test
test: ## Formatting, lints, licences, and all tests on real Kafka, PostgreSQL and Debezium
	@.ci/packages test
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	@$(MAKE) deny
	cargo test --locked --workspace --no-fail-fast --features java-tests $(ARGS)

# The dev profile, with the project's own code compiled for speed: what is set here is set for all dependencies
# anyway (see Cargo.toml), so RocksDB is not compiled again. Incremental code would not be inlined across its pieces.
BENCH := CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_OPT_LEVEL=3 CARGO_PROFILE_DEV_CODEGEN_UNITS=4 \
  CARGO_PROFILE_DEV_DEBUG_ASSERTIONS=false CARGO_PROFILE_DEV_OVERFLOW_CHECKS=false cargo bench --profile dev

# Not by `cargo bench` itself: at Ctrl-C cargo ends at once, and nobody would wait for the servers to be taken down.
.PHONY: bench
bench: ## Throughput and CPU on real Kafka and PostgreSQL, against rivals; ARGS="--quick", ARGS="--help"
	@.ci/packages test
	@program=$$($(BENCH) --features java-tests --bench pipeline --no-run --message-format json-render-diagnostics \
	  | sed -n 's/.*"name":"pipeline".*"executable":"\([^"]*\)".*/\1/p') && exec "$$program" $(ARGS)

.PHONY: bench-micro
bench-micro: ## What decoding, judging, storing and encoding cost by themselves; ARGS="judge" for a part
	@.ci/packages build
	@$(BENCH) --bench micro -- $(ARGS)

# Started by itself, like the bench. The short form of it is a part of `make test`.
.PHONY: chaos
chaos: ## Everything that can go wrong, for an hour, then a checker; ARGS="--seed 7 --faults 100", ARGS="--help"
	@.ci/packages test
	@program=$$(cargo test --features java-tests --test chaos --no-run --message-format json-render-diagnostics \
	  | sed -n 's/.*"name":"chaos".*"executable":"\([^"]*\)".*/\1/p') && exec "$$program" $(or $(ARGS),--faults 500)

.PHONY: fmt
fmt: ## Formats all code
	cargo fmt --all

.PHONY: lint
lint: ## Formatting and clippy, warnings denied
	@.ci/packages build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings

# Licences, banned and duplicate crates, sources. Advisories need a database from the network: not here.
.PHONY: deny
deny: $(DENY) ## Licences, bans and sources of all dependencies
	$(DENY) --log-level error --all-features --config .deny.toml check --show-stats licenses bans sources

# Unoptimised: it runs for a second, and compiles five times faster. It has a target directory of its own, because the
# workspace's profiles are not for it, and that is removed when it is built.
$(DENY):
	@echo "building cargo-deny $(DENY_VERSION), once"
	CARGO_TARGET_DIR=$(TARGET)/tools/build CARGO_PROFILE_DEV_DEBUG=0 \
	  cargo install --quiet --locked --debug --no-default-features cargo-deny@$(DENY_VERSION) \
	  --root $(TARGET)/tools/cargo-deny-$(DENY_VERSION)
	@rm -rf $(TARGET)/tools/build

.PHONY: clean-state
clean-state: ## Removes what killed demos and tests left in the temporary directory
	@.ci/sweep
