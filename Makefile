# Hermes: `make` builds, `make demo` shows it, `make test` checks everything.
# A fresh Debian-like machine needs Rust; tools/check_machine.sh names (or, for root, installs)
# the rest.

CARGO ?= cargo
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc

# Where the real models are, or are fetched to: 344 MB.
HERMES_MODELS ?= $(CURDIR)/models
export HERMES_MODELS

# Where the Python packages are, or are fetched to, that tests take: 154 MB.
HERMES_PYTHON ?= $(abspath $(or $(CARGO_TARGET_DIR),target))/python
export HERMES_PYTHON

# Where programs for aarch64 are built to.
HERMES_ARM_TARGET ?= $(abspath $(or $(CARGO_TARGET_DIR),target/arm))
export HERMES_ARM_TARGET

.PHONY: all build demo demo-chat test format built programs lint unit simulate properties nightly models clients bench cross test-arm deb deb-test \
	service-test vm-test vm-kernel install clean help

all: build

help:
	@echo "make          build the programs into target/release"
	@echo "make demo     build, fetch a sentence model, shard it, serve it in 48 MiB, ask it"
	@echo "make demo-chat  the same with a language model that does not fit: shard it, chat with it"
	@echo "make test     format, lints, documentation, every test (fetches 344 MB of models, 185 of Python)"
	@echo "make bench    measure BERT-Large through a 16 MiB window (3 GB of disk)"
	@echo "make lint     format, lints and documentation alone"
	@echo "make simulate the simulations with 100,000 seeds"
	@echo "make properties  what reads bytes of others, with 20,000 cases each"
	@echo "make nightly  all that CI runs, and what takes it too long (as root; an hour)"
	@echo "make cross    build for aarch64 (by cross and Docker, or by cross/setup.sh)"
	@echo "make test-arm run tests for aarch64 under qemu-user"
	@echo "make deb      build, and pack a .deb with cargo-deb (packaging/deb.sh for another architecture)"
	@echo "make deb-test install, upgrade and purge the .deb in a Debian of its own (as root)"
	@echo "make service-test  run the units under a systemd of their own (as root; seconds)"
	@echo "make vm-test  boot the arm64 .deb in an emulated board (as root; some minutes)"
	@echo "make vm-kernel run tests under arm64 kernels in an emulated board (as root; some minutes)"
	@echo "make install  copy programs, units, man pages and completions below \$$(DESTDIR)"
	@echo "make clean    remove what was built; fetched models stay"

build:
	@tools/check_machine.sh build
	$(CARGO) build --release --locked

demo:
	tools/demo.sh

demo-chat:
	tools/demo_chat.sh

test: lint unit

service-test: build
	tests/units.sh

format:
	tools/check_sources.sh
	tools/check_licences.sh
	$(CARGO) fmt --all --check

TEST = tools/linted.sh $(CARGO) test --locked

# All that the tests run, linted, and the documentation.
built:
	@tools/check_machine.sh build
	$(TEST) --no-run
	RUSTDOC="$(CURDIR)/tools/rustdoc.sh" $(TEST) --doc

# The programs alone, for tests of a file or two.
programs:
	$(TEST) --no-run --test program

lint: format built

unit: built models clients
	$(TEST) --no-fail-fast
	@echo "once more, as on a kernel that lacks all that can be missing"
	HERMES_WITHOUT=populate,direct,dioalign,exchange,psi,cgroup $(TEST) \
		--no-fail-fast --test engine --test budget
	HERMES_WITHOUT=populate,direct,dioalign,exchange,psi,cgroup $(TEST) \
		--no-fail-fast --test daemon -- pressure:: versions::
	@echo "and with as many cores as boards have"
	HERMES_CORES=1 $(TEST) --test engine
	HERMES_CORES=4 $(TEST) --no-fail-fast --test engine
	HERMES_CORES=4 $(TEST) --no-fail-fast --test daemon plans::
	HERMES_CORES=8 $(TEST) --test engine

# The simulations, with as many seeds as find what a few thousand do not.
simulate:
	HERMES_SEEDS=100000 $(TEST) --test simulate
	HERMES_SEEDS=100000 $(TEST) --lib engine::simulation

# The properties of what reads bytes of others, with as many cases as a fuzzer has in minutes.
properties:
	PROPTEST_CASES=20000 $(TEST) --lib -- api:: checkpoint:: graph::skim:: store:: text:: wire::

nightly:
	.ci/run --nightly

models:
	@tools/check_machine.sh models
	tools/fetch_models.sh "$(HERMES_MODELS)"

clients:
	@tools/check_machine.sh models
	tools/fetch_clients.sh "$(HERMES_PYTHON)"

bench:
	tools/bench.sh

cross:
	cross/build.sh

test-arm: models
	CARGO_TARGET_DIR="$(HERMES_ARM_TARGET)" cross/test.sh
	cross/compare.sh

deb: build
	packaging/deb.sh

deb-test:
	tests/deb.sh

vm-test: build cross
	packaging/deb.sh aarch64-unknown-linux-gnu --fast
	tests/vm/run.sh "$(or $(CARGO_TARGET_DIR),$(CURDIR)/target/arm)"/debian/hermes_*_arm64.deb

vm-kernel:
	tests/vm/kernel.sh

BIN = $(DESTDIR)$(PREFIX)/bin
SHARE = $(DESTDIR)$(PREFIX)/share
BUILT = $(or $(CARGO_TARGET_DIR),target)/release
# What is installed: all that has tract in it is one file, by the name of the daemon.
PROGRAMS = $(addprefix $(BUILT)/,hermes-programs hermesctl)
# What runs programs of another architecture.
RUN ?=

install:
	@for program in $(PROGRAMS); do \
		[ -x "$$program" ] || { echo "$$program is not there: run make build first"; exit 1; }; \
	done
	install -d "$(BIN)" "$(SHARE)/man/man1" "$(SHARE)/man/man8" \
		"$(SHARE)/bash-completion/completions"
	install -m 755 "$(BUILT)/hermes-programs" "$(BIN)/hermesd"
	ln -sfn hermesd "$(BIN)/hermes-shard"
	ln -sfn hermesd "$(BIN)/hermes-bench"
	install -m 755 "$(BUILT)/hermesctl" "$(BIN)"
	$(RUN) "$(BIN)/hermesd" --man-pages "$(SHARE)/man/man8"
	$(RUN) "$(BIN)/hermesctl" --man-pages "$(SHARE)/man/man1"
	$(RUN) "$(BIN)/hermes-shard" --man-pages "$(SHARE)/man/man1"
	$(RUN) "$(BIN)/hermesctl" completions bash >"$(SHARE)/bash-completion/completions/hermesctl"
	systemd/install.sh "$(DESTDIR)" "$(PREFIX)" "$(SYSCONFDIR)"

clean:
	$(CARGO) clean
