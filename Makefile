# plyfs. `make` builds, `make help` lists everything else.

GO      ?= go
PREFIX  ?= /usr/local
BINDIR  ?= $(PREFIX)/bin
# The only place where mount(8) looks for its helpers, whatever PREFIX is.
SBINDIR ?= /sbin
DESTDIR ?=
INSTALL ?= install

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
TOOL    := $(GO) tool -modfile=internal/tools/go.mod
CI      := $(GO) run ./internal/ci
SCRIPTS := $(shell find internal -name '*.sh') .ci/run

# mount(8) and mount.fuse3(8) find the program by these names.
HELPERS := mount.plyfs mount.fuse.plyfs mount.fuse3.plyfs

# What the tests call besides Go, gcc, make and git; what the tests with container engines call besides.
DEPS         := fuse3 acl attr uidmap util-linux e2fsprogs xfsprogs btrfs-progs shellcheck
DEPS_ENGINES := podman buildah crun runc containers-storage fuse-overlayfs busybox-static passwd \
	debootstrap debian-archive-keyring

# Packages with what they and their tests import; those whose tests mount import testenv.
PACKAGES   := $(GO) list -f '{{.ImportPath}} {{.Imports}} {{.TestImports}} {{.XTestImports}}' ./...
NEEDS_ROOT := internal.testenv\|uniontest

# How long each fuzz target runs, and each exerciser.
FUZZTIME      ?= 60s
EXERCISE_TIME ?= 10m

# The virtual machine of test-vm: user-mode Linux, or 6.1 or 6.12 in qemu; the size of each of its two disks; and what is
# tested in it.
KERNEL      ?= uml
VM_DISK     ?= 8G
VM_PACKAGES ?= ./internal/vm/smoke ./internal/vm/powercut $(wildcard ./drivers/devicemapper) ./drivers/zfs ./drivers/overlay2 ./drivers/vfs

.PHONY: all build install uninstall fmt lint test test-unit test-root test-exercise test-crash test-conformance \
	test-engines test-vm vm-run vm-shell fuzz bench demo deps deps-engines clean help

all: build ## Build (the default)

build: ## Build ./plyfs, static, without cgo
	CGO_ENABLED=0 $(GO) build -trimpath -tags urfave_cli_no_docs -ldflags '$(LDFLAGS)' -o plyfs ./cmd/plyfs

# To serve callers of fuse-overlayfs too, `make install LINK_FUSE_OVERLAYFS=1` adds a link of that name in BINDIR.
install: build ## Install to PREFIX (/usr/local) under DESTDIR, mount helpers to SBINDIR (/sbin)
	$(INSTALL) -D -m 0755 plyfs '$(DESTDIR)$(BINDIR)/plyfs'
	$(INSTALL) -d -m 0755 '$(DESTDIR)$(SBINDIR)'
	set -e; for h in $(HELPERS); do ln -sf '$(BINDIR)/plyfs' "$(DESTDIR)$(SBINDIR)/$$h"; done
	$(if $(LINK_FUSE_OVERLAYFS),ln -sf plyfs '$(DESTDIR)$(BINDIR)/fuse-overlayfs')

uninstall: ## Remove what install installed
	rm -f '$(DESTDIR)$(BINDIR)/plyfs' $(foreach h,$(HELPERS),'$(DESTDIR)$(SBINDIR)/$(h)')
	l='$(DESTDIR)$(BINDIR)/fuse-overlayfs'; if [ "$$(readlink "$$l")" = plyfs ]; then rm -f "$$l"; fi

fmt: ## Format all Go code
	$(TOOL) gofumpt -w .

lint: ## gofumpt, go vet, staticcheck, golangci-lint, shellcheck; all of them, then the verdict
	@bad=; \
	run() { echo "$$*"; "$$@" || bad="$$bad $$name"; }; \
	out=$$($(TOOL) gofumpt -l .) || bad=" gofumpt"; \
	if [ -n "$$out" ]; then echo "not formatted (make fmt):"; echo "$$out"; bad=" gofumpt"; fi; \
	name=vet run $(GO) vet ./...; \
	name=vet run $(GO) vet -tags engines,long,invariants,vm ./...; \
	name=staticcheck run $(TOOL) staticcheck -tags engines,long,invariants,vm ./...; \
	name=golangci-lint run $(TOOL) golangci-lint run --allow-parallel-runners ./...; \
	name=shellcheck run shellcheck $(SCRIPTS); \
	if [ -n "$$bad" ]; then echo "lint failed:$$bad"; exit 1; fi

test: deps deps-engines ## Everything that proves this checkout, as root; the last line counts
	@$(CI) -timeout 40m -check 'lint=make --no-print-directory lint' \
		-- -race -tags invariants -timeout 20m ./... \
		-- -tags engines -short -timeout 15m ./internal/e2e

test-unit: ## The tests that need no privilege
	@$(CI) -- -race -tags invariants $$($(PACKAGES) | sed -n '/$(NEEDS_ROOT)/!s/ .*//p')

test-root: deps ## The tests that mount, as root
	@$(CI) -- -race -tags invariants $$($(PACKAGES) | sed -n '/$(NEEDS_ROOT)/s/ .*//p')

test-exercise: deps ## Random operations against a model for EXERCISE_TIME (10m)
	@PLYFS_EXERCISE_TIME=$(EXERCISE_TIME) $(CI) -- -tags invariants -count=1 -timeout 12h ./fuzz/exerciser

test-crash: deps ## A failure, and a kill, at every system call that changes a layer; power cuts
	@$(CI) -- -tags invariants -count=1 -timeout 60m -run 'EveryCall|Killed|PowerCut|FailedSync' ./fs/union

test-engines: deps deps-engines ## podman and buildah, as root and rootless, in full
	@$(CI) -- -tags engines,long -timeout 60m ./internal/e2e

test-conformance: ## Your checkouts of public suites: PJDFSTEST=dir UNIONMOUNT=dir
	@if [ -z '$(PJDFSTEST)$(UNIONMOUNT)' ]; then \
		echo 'Set PJDFSTEST to a compiled checkout of pjdfstest, UNIONMOUNT to one of unionmount-testsuite, or both:'; \
		echo '  make test-conformance PJDFSTEST=~/pjdfstest UNIONMOUNT=~/unionmount-testsuite'; \
		echo 'Further variables are described at the top of internal/e2e/conformance.sh.'; exit 2; fi
	@$(MAKE) --no-print-directory build
	PJDFSTEST='$(PJDFSTEST)' UNIONMOUNT='$(UNIONMOUNT)' MOUNTER="$${MOUNTER:-$$PWD/plyfs}" internal/e2e/conformance.sh

test-vm: ## The tests that need another kernel, each package in a virtual machine (KERNEL=uml, 6.1 or 6.12)
	@internal/vm/test.sh $(KERNEL) $(VM_DISK) $(VM_TESTFLAGS) $(VM_PACKAGES)

vm-run: ## A shell command in the virtual machine: CMD='...'
	@internal/vm/run.sh $(KERNEL) $(VM_DISK) '$(subst ','\'',$(CMD))'

vm-shell: ## A shell in the virtual machine
	@internal/vm/run.sh $(KERNEL) $(VM_DISK)

fuzz: ## Every fuzz target for FUZZTIME (60s)
	@set -e; $(GO) list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./... | while read -r p; do \
		for t in $$($(GO) test -list '^Fuzz' "$$p" | grep '^Fuzz' || true); do \
			echo "$$p $$t"; $(GO) test -run '^$$' -fuzz "^$$t\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "$$p"; \
		done; done

bench: build ## Compare with the kernel's overlayfs and fuse-overlayfs, as root (BENCHFLAGS=...)
	./plyfs bench $(BENCHFLAGS)

demo: ## A Debian system in six layers on plyfs, then on the kernel's overlayfs, as root
	@internal/demo/demo.sh

deps: ## Install through apt what the tests need and is missing
	@internal/ci/deps.sh $(DEPS)

deps-engines: ## The same for the tests with container engines
	@internal/ci/deps.sh $(DEPS_ENGINES)

clean: ## Remove what build made
	rm -f plyfs

help: ## Print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
