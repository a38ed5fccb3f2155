# What a person or CI types. Each target installs what it misses.
.DEFAULT_GOAL := help
.PHONY: help build demo pictures test test-of-http test-of-django test-of-rules test-of-deploy chaos soak test-versions test-patroni test-django deb test-deb test-container lint bench bench-growth bench-scale bench-locks bench-throttle clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the program: target/release/backfilld
	@scripts/install-deps
	cargo build --release --locked

demo: build ## watch half a million rows being backfilled on a live PostgreSQL, three to five minutes once built
	@demo/run

test: ## the tests, on real PostgreSQL servers; the long ones and those that need root have targets of their own
	@scripts/install-deps
	@scripts/install-tools pgbouncer python prometheus systemd curl chromium deploy lint
	@# They wait more than they compute: one more at a time than there are processors.
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-$$(($$(nproc) + 1))} cargo test --locked
	@# Two at a time, the longest first; what each says comes when it has ended.
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target test-of-http test-of-django test-of-rules test-of-deploy

test-of-http:
	@scripts/test-http

test-of-django:
	@scripts/test-django 5.2

test-of-rules:
	@scripts/test-rules

test-of-deploy:
	@scripts/test-deploy

chaos: ## 20 minutes of every fault at random; CHAOS_SECONDS and CHAOS_SEED change time and faults
	@scripts/install-deps
	CHAOS_SECONDS=$${CHAOS_SECONDS:-1200} cargo test --locked --test chaos whatever -- --nocapture

soak: ## an hour with everything on: memory, log, metrics beside the database; SOAK_SECONDS changes the time
	@scripts/install-deps
	@scripts/install-tools prometheus python chromium
	cargo build --release --locked
	@scripts/test-http --soak $(or $(SOAK_SECONDS),3600)

test-versions: ## what depends on the server's version, on PostgreSQL 14, 16, 17 and 18
	@scripts/install-deps
	@scripts/install-tools pgbouncer
	@scripts/test-versions 14 16 17 18

test-patroni: ## a switchover and a failover by Patroni and etcd, in the middle of a job
	@scripts/install-deps
	@scripts/install-tools patroni etcd
	cargo test --locked --test it patroni -- --ignored

pictures: ## the pictures of the console in docs/img, by a browser
	@scripts/install-deps
	@scripts/install-tools python chromium
	cargo build --locked
	@scripts/test-http --pictures

test-django: ## migrations of Django 5.2, 6.0 and 6.1 with the package in integrations/django
	@scripts/install-deps
	@scripts/install-tools python
	cargo build --locked
	@scripts/test-django 5.2 6.0 6.1

deb: ## the Debian package: target/debian/backfilld_*.deb
	@scripts/install-deps
	@scripts/install-tools cargo-deb
	@scripts/build-deb

test-deb: ## the Debian package in a fresh Debian under systemd: installed, run, upgraded, purged; needs root, a few minutes
	@scripts/install-deps
	@scripts/install-tools cargo-deb systemd mmdebstrap
	@scripts/test-deb

test-container: ## the image by the Dockerfile, built and run without a registry; needs root, some minutes the first time
	@scripts/install-deps
	@scripts/install-tools containers mmdebstrap
	@scripts/test-container

lint: ## formatting, clippy, licences and sources of dependencies, shell scripts, the Dockerfile, the dashboard, links
	@scripts/install-deps
	@scripts/install-lint-tools
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	cargo deny --locked check licenses bans sources
	@scripts/lint-shell
	@scripts/lint-dockerfile
	@scripts/check-dashboard
	@scripts/check-links

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
