# Two commands need nothing before them: `make demo` and `make test`.
# Each sets up what is missing (see scripts/setup), and says so.

# No target needs a protoc; this keeps it so.
export PROTOC := /nonexistent

CARGO ?= cargo
# Scenarios mostly wait for daemons, so more run at once than there are cores.
TEST_THREADS ?= 8
# Scenarios run real OpenVPN servers, which takes root: test programs are started
# through sudo when make is not root. What is built still belongs to its builder.
THROUGH_SUDO := --config 'target."cfg(unix)".runner = ["sudo", "-E"]'
AS_ROOT := $(if $(filter-out 0,$(shell id -u)),$(THROUGH_SUDO))
# What `make soak` runs: names of tests, or parts of names. These have a long form, or hold times to what is promised.
SOAK ?= faults:: races_ crowded:: together:: handover:: standby:: mutations:: arrivals:: outage:: slow:: memory_and_disk
# Of `make fuzz`, over all targets together.
FUZZ_SECONDS ?= 600

.DEFAULT_GOAL := help
.PHONY: help demo test soak check bench fuzz setup clean

help: ## Show the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: ## A gateway and a living fleet in one process; ARGS="--openvpn" for real daemons
	@scripts/setup $(if $(findstring --openvpn,$(ARGS)),openvpn)
	$(CARGO) run --locked --bin ovfleet -- demo $(ARGS)

test: ## All tests: units, real OpenVPN daemons, callers in Python and JavaScript
	@scripts/setup openvpn python node examples
	$(CARGO) build --workspace --bins --tests --locked
	RUST_LIB_BACKTRACE=0 $(CARGO) test --workspace --locked --no-fail-fast $(AS_ROOT) -- --test-threads $(TEST_THREADS)

soak: ## Long forms of the tests with faults, SOAK names them; seeds and figures are printed
	@scripts/setup openvpn python
	$(CARGO) build --workspace --bins --locked
	$(CARGO) build --release --bin ovfleet --locked
	OVFLEET_SOAK=1 RUST_LIB_BACKTRACE=0 $(CARGO) test --locked --no-fail-fast -p openvpn-fleet -p ovfleet-tests --test fleet --test scenarios $(AS_ROOT) -- --test-threads 1 --nocapture $(SOAK)
	OVFLEET_SOAK=1 RUST_LIB_BACKTRACE=0 $(CARGO) test --locked -p ovfleet-gateway --lib -- --nocapture $(SOAK)

check: ## Everything a machine can say about the code without running it
	@scripts/setup buf
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked
	scripts/check-proto
	scripts/check-docs

bench: ## Measure, and print figures
	@scripts/setup
	$(CARGO) build --release --workspace --bins --bench '*' --locked
	$(CARGO) bench --workspace --locked --bench '*'

fuzz: ## Fuzz the parser and the encoder for FUZZ_SECONDS (600)
	@scripts/setup fuzz
	scripts/fuzz $(FUZZ_SECONDS)

setup: ## Install all that any target needs
	@scripts/setup openvpn python node examples buf

clean: ## Remove what was built and set up, not what apt installed
	$(CARGO) clean
	rm -rf tests/python/.venv tests/node/node_modules examples/typescript/node_modules scripts/node_modules
