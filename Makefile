# plyfs. `make` builds, `make help` lists everything else.

GO      ?= go
PREFIX  ?= /usr/local
BINDIR  ?= $(PREFIX)/bin
# The only place where mount(8) looks for its helpers, whatever PREFIX is.
SBINDIR ?= /sbin
DATADIR ?= $(PREFIX)/share
MANDIR  ?= $(DATADIR)/man
DOCDIR  ?= $(DATADIR)/doc/plyfs
UNITDIR ?= $(PREFIX)/lib/systemd
BASHDIR ?= $(DATADIR)/bash-completion/completions
ZSHDIR  ?= $(DATADIR)/zsh/site-functions
FISHDIR ?= $(DATADIR)/fish/vendor_completions.d
DESTDIR ?=
# Who answers for packages made here.
MAINTAINER ?= The plyfs developers <plyfs@plyfs.invalid>
INSTALL ?= install

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X plyfs/internal/version.version=$(VERSION)
# plyfs-mount forks before Go starts, where it can; see internal/launch/early.
ENTRY   := $(if $(filter amd64 arm64,$(shell $(GO) env GOARCH)),-E plyfs/internal/launch/early.Entry)
TOOL    := $(GO) tool -modfile=internal/tools/go.mod
CI      := $(GO) run ./internal/ci
SCRIPTS := $(shell find internal -name '*.sh') .ci/run
NFPM    := $(GO) tool -modfile=internal/packaging/tools/go.mod nfpm

# Where generated files and packages go, and what packages say of the version and the day of this checkout.
DIST       ?= dist
PKGVERSION := $(shell echo '$(VERSION)' | sed -E '/^v?[0-9]+\.[0-9]/!s/^/0.0.0-/; s/^v//; s/-/+/; s/-/./g')
DATE       := $(shell git log -1 --format=%cs 2>/dev/null || date +%F)

# mount(8) and mount.fuse3(8) find the program by these names.
HELPERS := mount.plyfs mount.fuse.plyfs mount.fuse3.plyfs

# What the tests call besides Go, gcc, make and git; what the tests with container engines call besides.
DEPS         := fuse3 acl attr uidmap util-linux e2fsprogs xfsprogs btrfs-progs shellcheck
DEPS_ENGINES := podman buildah crun runc containers-storage fuse-overlayfs busybox-static passwd docker.io containerd rootlesskit \
	iproute2 dpkg debootstrap debian-archive-keyring

# What the tests of packages call besides.
DEPS_PACKAGES := busybox-static dpkg rpm lintian groff-base man-db mandoc systemd zsh fish dbus libpam-systemd docker.io containerd runc \
	rootlesskit passwd curl

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
VM_PACKAGES ?= ./internal/vm/smoke ./internal/vm/powercut ./internal/vm/upper $(wildcard ./drivers/devicemapper) ./drivers/zfs ./drivers/overlay2 ./drivers/vfs

.PHONY: all build man completions install uninstall deb rpm fmt lint test test-unit test-root test-exercise test-crash test-conformance \
	test-engines test-packages test-vm vm-run vm-shell fuzz bench demo deps deps-engines deps-packages clean help

all: build man completions ## Build everything that install installs (the default)

build: ## Build ./plyfs, ./plyfs-mount and ./plyfsd, static, without cgo
	CGO_ENABLED=0 $(GO) build -trimpath -tags urfave_cli_no_docs -ldflags '$(LDFLAGS)' -ldflags 'plyfs/cmd/plyfs-mount=$(LDFLAGS) $(ENTRY)' \
		-o '$(BIN)/' ./cmd/plyfs ./cmd/plyfs-mount ./cmd/plyfsd

# `make && sudo make install PREBUILT=1` installs what is built already, and so needs no Go as root. Of man and completions it
# says that the programs in BIN are to be asked as they are.
BIN   ?= .
BUILT := $(if $(PREBUILT),,build)

man: $(BUILT) ## Write the manual pages to DIST/man
	rm -rf '$(DIST)/man'
	'$(BIN)/plyfs' __commands | $(GO) run ./internal/packaging/manual -docs docs -date '$(DATE)' -version '$(VERSION)' -out '$(DIST)/man'

completions: $(BUILT) ## Write the completions of bash, zsh and fish to DIST/completions
	rm -rf '$(DIST)/completions'
	$(INSTALL) -d '$(DIST)/completions'
	set -e; for s in bash zsh fish; do '$(BIN)/plyfs' completion $$s > "$(DIST)/completions/plyfs.$$s"; done

UNITS      := plyfs-snapshotter.service plyfs-graphplugin.service plyfs-graphplugin.socket plyfs-metrics.service
USER_UNITS := plyfs-snapshotter.service plyfs-graphplugin.service plyfs-metrics.service

# All go to one directory, which their links are made for.
DOCUMENTS := README.md CONTRIBUTING.md $(wildcard docs/*.md)

# To serve callers of fuse-overlayfs too, `plyfs install --as fuse-overlayfs`, or here LINK_FUSE_OVERLAYFS=1 for a link of
# that name in BINDIR.
install: $(if $(PREBUILT),,build man completions) ## Install to PREFIX (/usr/local) under DESTDIR, mount helpers to SBINDIR (/sbin)
	$(INSTALL) -D -m 0755 '$(BIN)/plyfs' '$(DESTDIR)$(BINDIR)/plyfs'
	$(INSTALL) -m 0755 '$(BIN)/plyfs-mount' '$(BIN)/plyfsd' '$(DESTDIR)$(BINDIR)'
	$(INSTALL) -d -m 0755 '$(DESTDIR)$(SBINDIR)'
	set -e; for h in $(HELPERS); do ln -sf '$(BINDIR)/plyfs-mount' "$(DESTDIR)$(SBINDIR)/$$h"; done
	$(if $(LINK_FUSE_OVERLAYFS),ln -sf plyfs-mount '$(DESTDIR)$(BINDIR)/fuse-overlayfs')
	set -e; cd '$(DIST)/man'; for p in man*/*; do $(INSTALL) -D -m 0644 "$$p" "$(DESTDIR)$(MANDIR)/$$p"; done
	$(INSTALL) -D -m 0644 '$(DIST)/completions/plyfs.bash' '$(DESTDIR)$(BASHDIR)/plyfs'
	$(INSTALL) -D -m 0644 '$(DIST)/completions/plyfs.zsh' '$(DESTDIR)$(ZSHDIR)/_plyfs'
	$(INSTALL) -D -m 0644 '$(DIST)/completions/plyfs.fish' '$(DESTDIR)$(FISHDIR)/plyfs.fish'
	$(INSTALL) -d -m 0755 '$(DESTDIR)$(UNITDIR)/system' '$(DESTDIR)$(UNITDIR)/user'
	set -e; unit() { sed 's|@BINDIR@|$(BINDIR)|g' "internal/packaging/systemd/$$1" > "$(DESTDIR)$(UNITDIR)/$$1"; \
		chmod 0644 "$(DESTDIR)$(UNITDIR)/$$1"; }; \
	for u in $(UNITS); do unit "system/$$u"; done; for u in $(USER_UNITS); do unit "user/$$u"; done
	$(INSTALL) -d -m 0755 '$(DESTDIR)$(DOCDIR)/examples'
	$(INSTALL) -m 0644 LICENSE $(wildcard docs/*.json) '$(DESTDIR)$(DOCDIR)'
	set -e; for d in $(DOCUMENTS); do to="$(DESTDIR)$(DOCDIR)/$${d##*/}"; \
		sed 's|](docs/|](|g; s|](\.\./|](|g' "$$d" > "$$to"; chmod 0644 "$$to"; done
	$(INSTALL) -m 0644 internal/packaging/config.toml '$(DESTDIR)$(DOCDIR)/examples'

uninstall: ## Remove what install installed, and nothing else
	rm -f $(foreach p,plyfs plyfs-mount plyfsd,'$(DESTDIR)$(BINDIR)/$(p)') $(foreach h,$(HELPERS),'$(DESTDIR)$(SBINDIR)/$(h)')
	l='$(DESTDIR)$(BINDIR)/fuse-overlayfs'; case "$$(readlink "$$l")" in plyfs|plyfs-mount) rm -f "$$l" ;; esac
	rm -f '$(DESTDIR)$(MANDIR)'/man1/plyfs.1 '$(DESTDIR)$(MANDIR)'/man1/plyfsd.1 '$(DESTDIR)$(MANDIR)'/man1/plyfs-*.1 '$(DESTDIR)$(MANDIR)'/man5/plyfs.toml.5 \
		$(foreach h,$(HELPERS),'$(DESTDIR)$(MANDIR)/man8/$(h).8')
	rm -f '$(DESTDIR)$(BASHDIR)/plyfs' '$(DESTDIR)$(ZSHDIR)/_plyfs' '$(DESTDIR)$(FISHDIR)/plyfs.fish'
	rm -f $(foreach u,$(UNITS),'$(DESTDIR)$(UNITDIR)/system/$(u)') $(foreach u,$(USER_UNITS),'$(DESTDIR)$(UNITDIR)/user/$(u)')
	rm -f '$(DESTDIR)$(DOCDIR)/examples/config.toml' $(foreach d,LICENSE $(notdir $(DOCUMENTS) $(wildcard docs/*.json)),'$(DESTDIR)$(DOCDIR)/$(d)')
	for d in '$(DESTDIR)$(DOCDIR)/examples' '$(DESTDIR)$(DOCDIR)'; do [ ! -d "$$d" ] || rmdir --ignore-fail-on-non-empty "$$d"; done

# $(call package,FORMAT,VARIABLE=VALUE...) stages an installation and makes a package of it.
define package
	rm -rf '$(DIST)/stage-$(1)'
	$(MAKE) --no-print-directory man completions install DESTDIR='$(abspath $(DIST))/stage-$(1)' PREFIX=/usr SBINDIR=/usr/sbin $(2)
	$(if $(filter deb,$(1)),cd '$(DIST)/stage-deb/usr/share/doc/plyfs' && rm LICENSE && $(INSTALL) -m 0644 '$(CURDIR)/internal/packaging/copyright' .)
	find '$(DIST)/stage-$(1)/usr/share/man' -type f -exec gzip -9n {} +
	rm -f '$(DIST)'/plyfs*.$(1)
	STAGE='$(DIST)/stage-$(1)' MAINTAINER='$(MAINTAINER)' VERSION='$(PKGVERSION)' ARCH="$$($(GO) env GOARCH)" \
		$(NFPM) package --config internal/packaging/nfpm.yaml --packager $(1) --target '$(DIST)/'
	rm -rf '$(DIST)/stage-$(1)'
endef

deb: ## Build a Debian package in DIST (dist)
	$(call package,deb,ZSHDIR=/usr/share/zsh/vendor-completions)

rpm: ## Build an RPM package in DIST (dist)
	$(call package,rpm)

fmt: ## Format all Go code
	$(TOOL) gofumpt -w .

lint: ## gofumpt, go vet, staticcheck, golangci-lint, shellcheck; all of them, then the verdict
	@bad=; \
	run() { echo "$$*"; "$$@" || bad="$$bad $$name"; }; \
	out=$$($(TOOL) gofumpt -l .) || bad=" gofumpt"; \
	if [ -n "$$out" ]; then echo "not formatted (make fmt):"; echo "$$out"; bad=" gofumpt"; fi; \
	name=vet run $(GO) vet ./...; \
	name=vet run $(GO) vet -tags engines,long,invariants,packages,vm ./...; \
	name=staticcheck run $(TOOL) staticcheck -tags engines,long,invariants,packages,vm ./...; \
	name=golangci-lint run $(TOOL) golangci-lint run --allow-parallel-runners ./...; \
	name=shellcheck run shellcheck $(SCRIPTS); \
	if [ -n "$$bad" ]; then echo "lint failed:$$bad"; exit 1; fi

test: deps deps-engines ## Everything that proves this checkout, as root; the last line counts
	@$(CI) -timeout 40m -check 'lint=make --no-print-directory lint' \
		-- -race -tags invariants -timeout 20m ./... \
		-- -tags engines -short -count=1 -timeout 15m ./internal/e2e

test-unit: ## The tests that need no privilege
	@$(CI) -- -race -tags invariants $$($(PACKAGES) | sed -n '/$(NEEDS_ROOT)/!s/ .*//p')

test-root: deps ## The tests that mount, as root
	@$(CI) -- -race -tags invariants $$($(PACKAGES) | sed -n '/$(NEEDS_ROOT)/s/ .*//p')

test-exercise: deps ## Random operations against a model for EXERCISE_TIME (10m)
	@PLYFS_EXERCISE_TIME=$(EXERCISE_TIME) $(CI) -- -tags invariants -count=1 -timeout 12h ./fuzz/exerciser

test-crash: deps ## A failure, and a kill, at every system call that changes a layer; power cuts
	@$(CI) -- -tags invariants -count=1 -timeout 60m -run 'EveryCall|Killed|PowerCut|FailedSync' ./fs/union

test-engines: deps deps-engines ## podman and buildah, as root and rootless, in full
	@$(CI) -- -tags engines,long -count=1 -timeout 90m ./internal/e2e

test-packages: deps deps-packages ## Installation, packages, manual pages, completions and units, in full
	@$(CI) -- -tags packages -timeout 30m ./internal/packaging

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

deps-packages: ## The same for the tests of packages
	@internal/ci/deps.sh $(DEPS_PACKAGES)

clean: ## Remove what build, man, completions, deb and rpm made
	rm -f plyfs plyfs-mount plyfsd
	rm -rf '$(DIST)'

help: ## Print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
