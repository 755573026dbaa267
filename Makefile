# GNU make. `make` or `make help` lists the targets; README.md explains them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# The steps share cargo's target directory, and two steps already use all CPUs.
.NOTPARALLEL:

NAME   := nomad-driver-exec2
TARGET ?= $(shell uname -m)-unknown-linux-musl
# Only the plugin may be in this directory: Nomad starts every executable in it.
PLUGIN_DIR := $(CURDIR)/bin
PLUGIN     := $(PLUGIN_DIR)/$(NAME)
OUT        := $(abspath $(or $(CARGO_TARGET_DIR),target))
PLUGINHOST := $(OUT)/pluginhost
PREFIX     ?= /usr/local
# The name of the target in Debian and Go.
ARCH       := $(patsubst x86_64-%,amd64,$(patsubst aarch64-%,arm64,$(TARGET)))
PACKAGES   := $(OUT)/packages
RELEASE    := $(OUT)/release-files
# Copied into the guests' root for the scenario `packages`: this version, and one to upgrade to.
VM_PAYLOAD := $(OUT)/vm-payload

# The binary must not contain build paths: the same source gives the same bytes in every directory.
CARGO_HOME_DIR := $(or $(CARGO_HOME),$(HOME)/.cargo)
REPRODUCIBLE := --remap-path-prefix=$(CARGO_HOME_DIR)=/cargo --remap-path-prefix=$(CURDIR)=/src --remap-path-prefix=$(OUT)=/target

# Kernels that the tests boot, as nixos-tests/run names them (`sid` has the
# newest). The head of each scenario states the kernels that it supports: 5.10
# has no Landlock, and the driver must refuse it.
VM_KERNELS ?= 5.10,6.1,sid
# All scenarios run on this kernel. Those whose result depends on the kernel,
# as `nixos-tests/run --list --across` shows, run on the others too.
VM_KERNEL ?= 6.12
# Names or patterns; empty: all scenarios.
VM_SCENARIOS ?=
# Empty: all scenarios on every kernel.
VM_ACROSS ?= --across
# Number of concurrent VMs; empty: one for each pair of CPUs.
VM_JOBS ?=
# Further options of nixos-tests/run, such as --no-snapshots.
VM_OPTIONS ?=

# An older Go downloads the toolchain that go.mod names from the module proxy.
export GOTOOLCHAIN ?= auto
export TARGET

run_in_vm = $(VM_OPTIONS) $(addprefix --jobs ,$(VM_JOBS)) --payload $(VM_PAYLOAD) --plugin $(PLUGIN) --pluginhost $(PLUGINHOST)

T0 := $(shell date +%s)
say = @printf '\n==> [%d s] %s\n' $$(($$(date +%s) - $(T0))) "$(1)"

.PHONY: help
help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

## Building

.PHONY: build
build: setup-build ## Build the static plugin: bin/nomad-driver-exec2
	$(call say,build $(NAME) for $(TARGET))
	RUSTFLAGS="$(RUSTFLAGS) $(REPRODUCIBLE)" cargo build --release --locked --target $(TARGET)
	install -D -m 755 $(OUT)/$(TARGET)/release/$(NAME) $(PLUGIN)

.PHONY: install
install: ## Install the built plugin, its documentation and completions below PREFIX (/usr/local)
	@test -x $(PLUGIN) || { echo 'nothing built yet: make build' >&2; exit 1; }
	install -D -m 755 $(PLUGIN) $(DESTDIR)$(PREFIX)/bin/$(NAME)
	install -D -m 644 packaging/$(NAME).8 $(DESTDIR)$(PREFIX)/share/man/man8/$(NAME).8
	install -D -m 644 packaging/completions/$(NAME).bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/$(NAME)
	install -D -m 644 packaging/completions/_$(NAME) $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_$(NAME)
	install -D -m 644 packaging/completions/$(NAME).fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/$(NAME).fish
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/$(NAME)/examples packaging/examples/exec2.hcl examples/*.hcl

pack = PATH="$$(scripts/setup --nfpm-dir):$$PATH" scripts/package --plugin $(PLUGIN) --inventory $(OUT)/inventory --arch $(ARCH)

.PHONY: packages
packages: setup-pack build ## Build .deb and .rpm in target/packages
	$(call say,pack)
	rm -rf $(PACKAGES)
	python3 packaging/inventory.py $(TARGET) $(OUT)/inventory
	$(pack) --out $(PACKAGES) deb rpm
	@ls -l $(PACKAGES)

.PHONY: release
release: setup-pack build ## Build all files of a release in target/release-files: packages, tarball, SBOM, SHA256SUMS
	$(call say,pack a release)
	rm -rf $(RELEASE)
	python3 packaging/inventory.py $(TARGET) $(OUT)/inventory
	$(pack) --out $(RELEASE) deb rpm tar sums
	@cat $(RELEASE)/SHA256SUMS

.PHONY: pluginhost
pluginhost: setup-go
	$(call say,build the test host)
	cd tests/pluginhost && CGO_ENABLED=0 go build -trimpath -o $(PLUGINHOST) ./cmd/pluginhost

## Testing

# With -k a failing part does not stop the others. Checks that this machine cannot
# run are listed in this file and at the end: they have not passed.
NOT_CHECKED := $(OUT)/not-checked

.PHONY: test
test: setup-all begin lint-code advisories-here test-unit test-scenarios test-go test-syscalls fuzz test-packages test-nix-here test-vm lint-nix ## Run everything that CI runs
	@if [ -s $(NOT_CHECKED) ]; then printf '\nPassed, but NOT CHECKED: %s\n' "$$(paste -sd, $(NOT_CHECKED))"; \
	else printf '\nEverything passed.\n'; fi

.PHONY: begin
begin:
	@mkdir -p $(OUT); rm -f $(NOT_CHECKED)

# Prebuilt linters in pinned versions.
linter = PATH="$$(scripts/setup --lint-dir):$$PATH"

.PHONY: lint
lint: lint-code lint-nix ## Run all linters: Rust, crates, Python, shell, spelling, Nix

.PHONY: lint-code
lint-code: setup-lint ## Run rustfmt, clippy, cargo-deny, the list of crates; ruff, mypy; shellcheck; typos; links of the docs; words to avoid
	$(call say,rustfmt)
	cargo fmt --all --check
	$(call say,ruff and mypy)
	$(linter) ruff check --quiet
	$(linter) mypy
	$(call say,shellcheck and typos; links and prose of the docs)
	git grep -lzE '^#!.*\b(ba)?sh$$' -- .ci fuzz nixos-tests scripts | xargs -0 shellcheck
	$(linter) typos
	scripts/check_docs.py
	scripts/check_prose.py
	scripts/attack_table.py --check
	$(call say,cargo-deny)
	$(linter) cargo-deny --locked check bans licenses sources
	scripts/check_dependencies.py
	$(call say,clippy)
	cargo clippy --locked --all-targets -- -D warnings

# Separate, and last in `make test`: its tools have to be compiled first.
.PHONY: lint-nix
lint-nix: setup-lint-nix ## Run nixfmt and deadnix
	$(call say,nixfmt and deadnix)
	git ls-files -z '*.nix' | xargs -0 $$(scripts/setup --nixfmt-bin) --check
	git ls-files -z '*.nix' | xargs -0 $$(scripts/setup --deadnix-bin) --fail

.PHONY: lint-prose
lint-prose: ## Find words and phrases to avoid in documentation, comments and messages
	$(call say,prose)
	scripts/check_prose.py

# A clone of https://github.com/RustSec/advisory-db; empty: fetched from GitHub.
ADVISORY_DB ?=
export ADVISORY_DB

.PHONY: advisories
advisories: setup-lint ## List known vulnerabilities of the crates (needs ADVISORY_DB or GitHub)
	$(linter) scripts/check-advisories

# For `make test`, which works without the network.
.PHONY: advisories-here
advisories-here: setup-lint
	$(call say,known vulnerabilities of the crates)
	@status=0; $(linter) scripts/check-advisories --offline || status=$$?; \
	if [ $$status = 77 ]; then mkdir -p $(OUT); echo 'advisories (no ADVISORY_DB)' >> $(NOT_CHECKED); else exit $$status; fi

.PHONY: test-unit
test-unit: setup-build ## Run the Rust tests; they need neither root nor a VM
	$(call say,cargo test)
	cargo test --locked --target $(TARGET)
	$(call say,the same tests in the environment of a Nix build)
	@status=0; scripts/test-sandbox || status=$$?; \
	if [ $$status = 77 ]; then mkdir -p $(OUT); echo 'Rust tests as in a Nix build (no user namespaces)' >> $(NOT_CHECKED); else exit $$status; fi

.PHONY: test-scenarios
test-scenarios: ## Check the scenarios' heads, and run them on a file system laid out like NixOS, without a VM
	$(call say,heads of the scenarios)
	nixos-tests/selftest/heads.py
	$(call say,scenarios on a machine like NixOS)
	@status=0; nixos-tests/selftest/nixos_guest.py || status=$$?; \
	if [ $$status = 77 ]; then mkdir -p $(OUT); echo 'scenarios as on NixOS (no user namespaces)' >> $(NOT_CHECKED); else exit $$status; fi

.PHONY: test-syscalls
test-syscalls: setup-trace build ## Compare the system calls of a task's start with bench/syscalls.txt (root)
	$(call say,system calls of a start)
	@status=0; scripts/count_syscalls.py $(PLUGIN) || status=$$?; \
	if [ $$status = 77 ]; then mkdir -p $(OUT); echo 'system calls of a start (not root)' >> $(NOT_CHECKED); else exit $$status; fi

ATTACK_RESULTS := $(OUT)/attacks

.PHONY: attacks
attacks: setup-vm build pluginhost ## Try the attacks on tasks on all kernels, and write docs/attacks.md
	rm -rf $(ATTACK_RESULTS)
	EXEC2_ATTACK_RESULTS=$(ATTACK_RESULTS) nixos-tests/run --kernel 6.1,6.12,sid --nomad pluginhost $(addprefix --jobs ,$(VM_JOBS)) \
	  --plugin $(PLUGIN) --pluginhost $(PLUGINHOST) attacks
	scripts/attack_table.py --update $(ATTACK_RESULTS)

# Further plugins for `make bench`, as LABEL=PATH, and options of the program, such as `-tasks 0,100`.
BENCH_PLUGINS ?=
BENCH_ARGS    ?=
BENCH_PAYLOAD := $(OUT)/bench-payload

.PHONY: bench
bench: setup-vm build pluginhost ## Measure plugins, plain processes and other sandboxes in a VM: target/bench
	$(call say,benchmark in a VM)
	rm -rf $(BENCH_PAYLOAD)
	mkdir -p $(BENCH_PAYLOAD)/srv/bench/bin $(BENCH_PAYLOAD)/srv/bench/plugins
	cd tests/pluginhost && CGO_ENABLED=0 go build -trimpath -o $(BENCH_PAYLOAD)/srv/bench/bench ./cmd/bench
	for each in $(BENCH_PLUGINS); do install -m 755 "$${each#*=}" "$(BENCH_PAYLOAD)/srv/bench/plugins/$${each%%=*}"; done
	if bwrap=$$(command -v bwrap); then install -m 755 "$$bwrap" $(BENCH_PAYLOAD)/srv/bench/bin/bwrap; fi
	EXEC2_BENCH_OUT=$(OUT)/bench EXEC2_BENCH_ARGS="$(BENCH_ARGS)" nixos-tests/run --kernel $(VM_KERNEL) --nomad pluginhost --jobs 1 \
	  --no-snapshots --plugin $(PLUGIN) --pluginhost $(PLUGINHOST) --payload $(BENCH_PAYLOAD) bench/vm.py
	@cat $(OUT)/bench/table.md

.PHONY: bench-native
bench-native: setup-build ## Measure starts and stops of tasks against plain processes, here (root)
	$(call say,benchmark)
	cargo bench --locked --target $(TARGET) --bench start

.PHONY: test-go
test-go: setup-go ## Run gofmt, vet and tests of the test host; compare pb/ with proto/
	$(call say,go vet and go test)
	cd tests/pluginhost && test -z "$$(gofmt -l . | tee -a /dev/stderr)" && go vet ./... && go test ./...
	$(call say,compare pb/ with proto/)
	cd tests/pluginhost/gen && go vet ./... && go test ./... && go run . -check

.PHONY: test-packages
test-packages: setup-pack setup-payload ## Check the packages' contents and that builds are reproducible
	$(call say,packages)
	@scripts/check-packages

.PHONY: test-nix
test-nix: setup-nix ## Check the flake, as far as this machine can
	$(call say,the flake)
	@scripts/check-nix

# For `make test`, which must also work on a machine without Nix.
.PHONY: test-nix-here
test-nix-here: setup-nix
	$(call say,the flake)
	@status=0; scripts/check-nix || status=$$?; \
	if [ $$status = 77 ]; then mkdir -p $(OUT); echo 'the flake (no nix here)' >> $(NOT_CHECKED); else exit $$status; fi

.PHONY: test-vm
test-vm: setup-vm setup-pack build pluginhost ## Run the scenarios in VMs on VM_KERNEL and VM_KERNELS
	$(call say,scenarios on Linux $(VM_KERNEL) and $(VM_KERNELS))
	python3 packaging/inventory.py $(TARGET) $(OUT)/inventory
	rm -rf $(VM_PAYLOAD)
	$(pack) --out $(VM_PAYLOAD)/srv/exec2-packages/this deb rpm
	VERSION=999.0.0 $(pack) --out $(VM_PAYLOAD)/srv/exec2-packages/next deb rpm
	@status=0; set -x; \
	nixos-tests/run --kernel $(VM_KERNEL) $(run_in_vm) $(VM_SCENARIOS) || status=1; \
	nixos-tests/run --kernel $(VM_KERNELS) $(run_in_vm) $(VM_ACROSS) || status=1; \
	scripts/demo $(PLUGIN) $(PLUGINHOST) || status=1; \
	exit $$status

# Minutes of churn; in `make test-vm` the same scenario takes one minute.
SOAK_MINUTES ?= 10
SOAK_KERNEL  ?= 6.12

.PHONY: test-reliability
test-reliability: setup-vm build pluginhost ## Test faults: killed plugin, agent and shim, reboot, exhausted resources; churn
	$(call say,faults on Linux $(VM_KERNEL))
	nixos-tests/run --kernel $(VM_KERNEL) --plugin $(PLUGIN) --pluginhost $(PLUGINHOST) 'reliability*'

.PHONY: soak
soak: setup-vm build pluginhost ## Start and stop tasks for SOAK_MINUTES in a VM, then look for leaks
	$(call say,soak for $(SOAK_MINUTES) min)
	EXEC2_SOAK_MINUTES=$(SOAK_MINUTES) nixos-tests/run --kernel $(SOAK_KERNEL) --nomad pluginhost \
	  --timeout $$(( $(SOAK_MINUTES) * 60 + 900 )) --plugin $(PLUGIN) --pluginhost $(PLUGINHOST) reliability_soak

# Seconds for each target; see fuzz/README.md.
FUZZ_SECONDS ?= 10

.PHONY: fuzz
fuzz: setup-fuzz ## Fuzz each decoder for FUZZ_SECONDS
	$(call say,fuzz $(FUZZ_SECONDS) s each)
	fuzz/run $(FUZZ_SECONDS)

## Trying it

.PHONY: demo
demo: setup-demo build pluginhost ## Boot a VM and run example jobs in it
	@scripts/demo $(PLUGIN) $(PLUGINHOST)

.PHONY: hack
hack: build ## Start a Nomad dev agent with the plugin, here or in a VM
	@scripts/hack $(PLUGIN)

## The rest

# One call, so that all missing tools are named before the first step. Without lint-nix, which takes long and is needed last.
.PHONY: setup-all setup-demo
setup-all:
	@scripts/setup build lint go vm pack payload nix fuzz trace
setup-demo:
	@scripts/setup build go vm
SETUPS := $(addprefix setup-,build lint lint-nix go vm pack payload nix fuzz trace)
.PHONY: $(SETUPS)
$(SETUPS): setup-%:
	@scripts/setup $*

.PHONY: clean
clean: ## Remove build results (not the caches in ~/.cache)
	cargo clean
	rm -rf bin
