# What one can do here. "make" alone lists it.

VERSION ?= $(or $(shell git describe --tags --match 'v[0-9]*' 2>/dev/null | sed 's/^v//'),0.1.0-dev)
COMMIT  ?= $(or $(shell git rev-parse --short=12 HEAD 2>/dev/null),unknown)
# The commit's time, not the clock's: equal sources give equal binaries.
BUILT   ?= $(or $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null),unknown)

STAMP   := -X holdfast/internal/version.Version=$(VERSION) \
           -X holdfast/internal/version.Commit=$(COMMIT) \
           -X holdfast/internal/version.BuildTime=$(BUILT) \
           -X main.release=$(VERSION)
GOBUILD := go build -trimpath -buildvcs=false -ldflags '-s -w $(STAMP)'

export CGO_ENABLED := 0

IMAGE   := internal/cli/demo/image/image.tar

.DEFAULT_GOAL := help
.PHONY: help build image demo check vet unit test crash upgrade bench packages root tools install clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

build: image ## the binaries, static, into bin/
	@mkdir -p bin
	$(GOBUILD) -o bin/ ./cmd/holdfast ./cmd/holdfastd ./cmd/holdfast-shim ./cmd/holdfast-init

image: $(IMAGE)

# The image that "holdfast demo" carries.
$(IMAGE): $(wildcard internal/cli/demo/app/*.go internal/cli/demo/mkimage/*.go)
	go run ./internal/cli/demo/mkimage $@

demo: ## kill a daemon under a running container and watch the container (root)
	.ci/need runc
	@$(MAKE) --no-print-directory build
	bin/holdfast demo

check: vet unit ## format, vet and the tests that need no root: fast

vet:
	@unformatted=$$(gofmt -l cmd internal $$(ls -d test 2>/dev/null)); \
	if [ -n "$$unformatted" ]; then echo "run gofmt -w on:" $$unformatted; exit 1; fi
	go vet ./...

unit:
	go test ./internal/... ./cmd/... ./test/arch

# What the tests that need root need besides.
ROOTTEST = PATH="$$PATH:$(CURDIR)/.cache/bin" HOLDFAST_BIN=$(CURDIR)/bin go test -p 1 -count=1

test: root packages ## everything; installs what is missing (root)
	@$(MAKE) --no-print-directory build tools vet unit
	$(ROOTTEST) -timeout 20m ./test/...

crash: root packages ## daemons that are killed at every point, and what is found after it (root)
	@$(MAKE) --no-print-directory build tools
	$(ROOTTEST) -timeout 20m -v ./test/crash

upgrade: root packages ## daemons and shims of every version in test/upgrade/versions.txt over each other (root)
	@$(MAKE) --no-print-directory build tools
	$(ROOTTEST) -timeout 20m -v ./test/upgrade

bench: root packages ## measure in full, beside dockerd and podman where they are installed (root)
	.ci/need iperf3
	@$(MAKE) --no-print-directory build tools
	PATH="$$PATH:$(CURDIR)/.cache/debian/usr/sbin:$(CURDIR)/.cache/debian/usr/bin"; $(ROOTTEST) -timeout 15m -v ./test/bench -full -write $(CURDIR)/docs/benchmarks.md

root:
	@[ "$$(id -u)" = 0 ] || { echo "this starts daemons and containers: run it as root ('make check' needs no root)"; exit 1; }

packages:
	.ci/need runc nft:nftables ip:iproute2 ps:procps tmux /bin/busybox:busybox-static chromium \
		iptables ufw dbus-daemon /usr/lib/python3/dist-packages/firewall:python3-firewall \
		/usr/lib/python3/dist-packages/nftables:python3-nftables
	.ci/unpack dockerd:docker.io,containerd firewalld:firewalld

# Docker's own client, which the tests use beside holdfast, from the module
# that we depend on anyway. Where one is installed, that one is used.
tools:
	@mkdir -p .cache/bin
	@command -v docker >/dev/null || go build -trimpath -gcflags=github.com/docker/cli/cmd/docker=-lang=go1.26 \
		-o .cache/bin/docker github.com/docker/cli/cmd/docker

PREFIX ?= /usr/local
install: build ## the binaries into PREFIX/bin (/usr/local)
	install -d $(DESTDIR)$(PREFIX)/bin
	install bin/holdfast bin/holdfastd bin/holdfast-shim bin/holdfast-init $(DESTDIR)$(PREFIX)/bin/

clean: ## what building made
	rm -rf bin .cache $(IMAGE)
