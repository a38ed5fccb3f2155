# What a person or CI types. Each target installs what it misses.
.DEFAULT_GOAL := help
.PHONY: help build demo test chaos test-versions test-patroni test-django lint bench bench-growth bench-scale bench-locks bench-throttle clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the program: target/release/backfilld
	@scripts/install-deps
	cargo build --release --locked

demo: build ## watch half a million rows being backfilled on a live PostgreSQL, about three minutes
	@demo/run

test: ## every test, on real PostgreSQL servers
	@scripts/install-deps
	@scripts/install-tools pgbouncer python
	cargo test --locked
	@scripts/test-django 5.2

chaos: ## 20 minutes of every fault at random; CHAOS_SECONDS and CHAOS_SEED change time and faults
	@scripts/install-deps
	CHAOS_SECONDS=$${CHAOS_SECONDS:-1200} cargo test --locked --test chaos whatever -- --nocapture

test-versions: ## what depends on the server's version, on PostgreSQL 14, 16, 17 and 18
	@scripts/install-deps
	@scripts/install-tools pgbouncer
	@scripts/test-versions 14 16 17 18

test-patroni: ## a switchover and a failover by Patroni and etcd, in the middle of a job
	@scripts/install-deps
	@scripts/install-tools patroni etcd
	cargo test --locked --test it patroni -- --ignored

test-django: ## migrations of Django 5.2, 6.0 and 6.1 with the package in integrations/django
	@scripts/install-deps
	@scripts/install-tools python
	cargo build --locked
	@scripts/test-django 5.2 6.0 6.1

lint: ## formatting, clippy, licences and sources of dependencies, shell scripts
	@scripts/install-deps
	@scripts/install-lint-tools
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	cargo deny --locked check licenses bans sources
	@scripts/lint-shell

bench: ## rows a second, one worker and two, beside what people use today; the README's plot; about 40 minutes
	@scripts/install-deps
	@scripts/install-tools pgbouncer django
	cargo bench --locked --bench backfill -- speed
	cargo bench --locked --bench backfill -- speed-defaults
	cargo bench --locked --bench backfill -- workers

bench-growth: ## whether a batch costs the same at both ends of a 10,000,000-row walk
	@scripts/install-deps
	cargo bench --locked --bench backfill -- growth

bench-scale: ## a walk of 50,000,000 rows from end to end, and 100 jobs at once, about 15 minutes
	@scripts/install-deps
	cargo bench --locked --bench backfill -- scale

bench-locks: ## the longest lock of a whole change beside that of a plain migration, 5,000,000 rows, about 10 minutes
	@scripts/install-deps
	cargo bench --locked --bench backfill -- locks

bench-throttle: ## what the throttle does on real servers, about 75 minutes
	@scripts/install-deps
	@scripts/install-tools prometheus
	cargo bench --locked --bench throttle -- all

clean: ## remove what was built
	cargo clean
