# GNU make. `make` or `make help` lists the targets; README.md says more.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# The steps share cargo's target directory and two of them fill the machine.
.NOTPARALLEL:

NAME   := nomad-driver-exec2
TARGET ?= $(shell uname -m)-unknown-linux-musl
# Nothing but the plugin may lie here: Nomad starts every executable in it.
PLUGIN_DIR := $(CURDIR)/bin
PLUGIN     := $(PLUGIN_DIR)/$(NAME)
OUT        := $(abspath $(or $(CARGO_TARGET_DIR),target))
PLUGINHOST := $(OUT)/pluginhost
PREFIX     ?= /usr/local

# Kernels that the tests boot, as nixos-tests/run names them (`sid` has the
# newest). Each scenario says which of them it is for: 5.10 has no Landlock, and
# is there to be refused.
VM_KERNELS ?= 5.10,6.1,6.12,sid

# An older Go fetches the toolchain that go.mod names, by the module proxy.
export GOTOOLCHAIN ?= auto
export TARGET

T0 := $(shell date +%s)
say = @printf '\n==> [%d s] %s\n' $$(($$(date +%s) - $(T0))) "$(1)"

.PHONY: help
help: ## This list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

## Building

.PHONY: build
build: setup-build ## The static plugin: bin/nomad-driver-exec2
	$(call say,build $(NAME) for $(TARGET))
	cargo build --release --locked --target $(TARGET)
	install -D -m 755 $(OUT)/$(TARGET)/release/$(NAME) $(PLUGIN)

.PHONY: install
install: ## Install the built plugin and man page below PREFIX (/usr/local)
	@test -x $(PLUGIN) || { echo 'nothing built yet: make build' >&2; exit 1; }
	install -D -m 755 $(PLUGIN) $(DESTDIR)$(PREFIX)/bin/$(NAME)
	install -D -m 644 packaging/$(NAME).8 $(DESTDIR)$(PREFIX)/share/man/man8/$(NAME).8

.PHONY: pluginhost
pluginhost: setup-go
	$(call say,build the test host)
	cd tests/pluginhost && CGO_ENABLED=0 go build -trimpath -o $(PLUGINHOST) .

## Testing

.PHONY: test
test: setup-all lint test-unit test-go test-vm ## Every test there is

.PHONY: lint
lint: setup-lint ## rustfmt, clippy, cargo-deny
	$(call say,rustfmt)
	cargo fmt --check
	$(call say,clippy)
	cargo clippy --locked --all-targets -- -D warnings
	$(call say,cargo-deny)
	$$(scripts/setup --deny-bin) --locked check bans licenses sources

.PHONY: advisories
advisories: setup-lint ## Known vulnerabilities of the crates (needs GitHub)
	$$(scripts/setup --deny-bin) --locked check advisories

.PHONY: test-unit
test-unit: setup-build ## Rust tests; they need neither root nor a VM
	$(call say,cargo test)
	cargo test --locked

.PHONY: test-go
test-go: setup-go ## gofmt, vet and tests of the test host
	$(call say,go vet and go test)
	cd tests/pluginhost && test -z "$$(gofmt -l . | tee /dev/stderr)" && go vet ./... && go test ./...

.PHONY: test-vm
test-vm: setup-vm build pluginhost ## Scenarios in VMs with kernels VM_KERNELS
	$(call say,scenarios on Linux $(VM_KERNELS))
	nixos-tests/run --kernel $(VM_KERNELS) --plugin $(PLUGIN) --pluginhost $(PLUGINHOST)

## Trying it

.PHONY: demo
demo: setup-demo build pluginhost ## Boot a VM and run example jobs in it
	@scripts/demo $(PLUGIN) $(PLUGINHOST)

.PHONY: hack
hack: build ## A Nomad dev agent with the plugin, here or in a VM
	@scripts/hack $(PLUGIN)

## The rest

# One call, so that everything missing is named before anything starts.
.PHONY: setup-all setup-demo setup-build setup-lint setup-go setup-vm
setup-all:
	@scripts/setup build lint go vm
setup-demo:
	@scripts/setup build go vm
setup-build setup-lint setup-go setup-vm: setup-%:
	@scripts/setup $*

.PHONY: clean
clean: ## Remove what was built here (not the caches in ~/.cache)
	cargo clean
	rm -rf bin
