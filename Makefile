# Two commands matter: `make demo` and `make test`. Each installs what it needs (Debian, as root),
# builds, and runs. CARGO, CARGO_TARGET_DIR and CARGOFLAGS are honoured.

CARGO ?= cargo
SOAK ?= 300
FUZZ ?= 60

.PHONY: all build demo test check unit nonces test-verbs rxe-vm containers fuzz interleavings soak bench deps clean help

all: build

help:
	@echo "make demo           start a server, copy a tree out and back, read one-sidedly"
	@echo "make test           everything: lints, unit, interleavings, end to end"
	@echo "make test-verbs     the engine verbs, on an RDMA device or in a machine with soft-RoCE"
	@echo "make containers     docker/compose.yaml with real containers, in a machine with soft-RoCE"
	@echo "make fuzz FUZZ=60   each fuzz target that many seconds"
	@echo "make soak SOAK=300  two clients at full speed on each engine, that many seconds each; then random"
	@echo "                    histories with failing disks and crashes for about as long (3600: an hour)"
	@echo "make bench          the experiments, over tcp and shm, on this machine"

deps:
	@scripts/deps.sh

build: deps
	$(CARGO) build --workspace --release $(CARGOFLAGS)

demo: build
	demo/demo.sh

test: deps check unit nonces rxe-vm test-verbs interleavings fuzz

# Formatting and lints, warnings denied.
check: deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features $(CARGOFLAGS) -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps $(CARGOFLAGS)

# Unit tests, the session suite over every engine, and end to end with real processes.
unit: deps
	$(CARGO) build --workspace --bins $(CARGOFLAGS)
	$(CARGO) test --workspace $(CARGOFLAGS)
	@if [ "$$(id -u)" -eq 0 ]; then set -x; \
		$(CARGO) test -p dafsd --lib $(CARGOFLAGS) -- --ignored handles_survive && \
		$(CARGO) test -p dafsd --lib $(CARGOFLAGS) -- --ignored the_largest_size_on_ext4 && \
		$(CARGO) test -p dafsd --test full_disk $(CARGOFLAGS) -- --ignored; \
	else \
		echo "not run: what takes root, to empty the kernel's caches and to mount file systems"; \
	fi

# No nonce is used twice under a page key, whatever happens.
nonces: deps
	$(CARGO) test -p dafsd --lib --features count-nonces $(CARGOFLAGS) -- --nocapture nonces

# The virtual machine with soft-RoCE keeps its promises.
rxe-vm: deps
	docker/rxe-vm-test

# The engine verbs: on this host where it has an RDMA device, else in a virtual machine with soft-RoCE.
test-verbs: deps
	@if [ -n "$$(ls -A /sys/class/infiniband 2>/dev/null)" ]; then set -x; scripts/test-verbs.sh --here; \
	else set -x; scripts/test-verbs.sh; fi

# Server and client in containers over soft-RoCE, in the same virtual machine. Takes root.
containers: deps
	CARGO="$(CARGO)" docker/containers-test

# Whatever a peer or a slot holds: handshakes, frames, footers, handles, packets of verbs.
fuzz: deps
	scripts/fuzz.sh $(FUZZ)

# Every interleaving of fill, write, evict and one-sided read, within a bound of preemptions.
interleavings: deps
	$(CARGO) test --release -p ordma -p dafsd --features ordma/explore,dafsd/explore $(CARGOFLAGS) \
		--lib -- --nocapture explore interleavings

soak: deps
	DAFS_SOAK_SECONDS=$(SOAK) $(CARGO) test --release -p dafsd --test two_clients $(CARGOFLAGS) -- --nocapture
	DAFS_SEEDS=$$(( $(SOAK) * 50 )) $(CARGO) test --release -p dafsd --test durability $(CARGOFLAGS) -- --nocapture

bench: build
	$(CARGO) run --release -p dafs-bench $(CARGOFLAGS) -- all --engine tcp
	$(CARGO) run --release -p dafs-bench $(CARGOFLAGS) -- all --engine shm

clean:
	$(CARGO) clean
