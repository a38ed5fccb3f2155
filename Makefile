# What a person or CI types. Each target installs what it misses.
.DEFAULT_GOAL := help
.PHONY: help build demo test chaos lint bench bench-growth bench-throttle clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the program: target/release/backfilld
	@scripts/install-deps
	cargo build --release --locked

demo: build ## watch half a million rows being backfilled on a live PostgreSQL, about three minutes
	@demo/run

test: ## every test, on real PostgreSQL servers
	@scripts/install-deps
	cargo test --locked

chaos: ## 20 minutes of every fault at random; CHAOS_SECONDS and CHAOS_SEED change time and faults
	@scripts/install-deps
	CHAOS_SECONDS=$${CHAOS_SECONDS:-1200} cargo test --locked --test chaos whatever -- --nocapture

lint: ## formatting, clippy, licences and sources of dependencies, shell scripts
	@scripts/install-deps
	@scripts/install-lint-tools
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	cargo deny --locked check licenses bans sources
	@scripts/lint-shell

bench: ## rows a second beside one UPDATE and a server-side procedure, about 10 minutes
	@scripts/install-deps
	cargo bench --locked --bench backfill -- speed
	cargo bench --locked --bench backfill -- speed-defaults

bench-growth: ## whether a batch costs the same at both ends of a 10,000,000-row walk
	@scripts/install-deps
	cargo bench --locked --bench backfill -- growth

bench-throttle: ## what the throttle does on real servers, about 75 minutes
	@scripts/install-deps
	@scripts/install-bench-tools
	cargo bench --locked --bench throttle -- all

clean: ## remove what was built
	cargo clean
