# SPDX-License-Identifier: Apache-2.0

# "make" alone lists the targets.

VERSION ?= $(or $(shell git describe --tags --match 'v[0-9]*' 2>/dev/null | sed 's/^v//'),0.1.0-dev)
COMMIT  ?= $(or $(shell git rev-parse --short=12 HEAD 2>/dev/null),unknown)
# The commit's time, so that equal sources give equal binaries.
BUILT   ?= $(or $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null),unknown)

STAMP   := -X holdfast/internal/version.Version=$(VERSION) \
           -X holdfast/internal/version.Commit=$(COMMIT) \
           -X holdfast/internal/version.BuildTime=$(BUILT) \
           -X main.release=$(VERSION)
GOBUILD := go build -trimpath -buildvcs=false -ldflags '-s -w $(STAMP)'

export CGO_ENABLED := 0

BINARIES ?= holdfast holdfastd holdfast-shim holdfast-init holdfast-build holdfast-swarm
COMMANDS  = $(addprefix ./cmd/,$(BINARIES))

IMAGE   := internal/cli/demo/image/image.tar
# The architecture for which the image is made. A file with its name records it.
ARCH    := $(or $(GOARCH),$(shell go env GOARCH 2>/dev/null))
MADEFOR := .cache/image-$(ARCH)
# Prerequisites of the binaries: holdfast embeds the image.
WITHIN   = $(if $(filter holdfast,$(BINARIES)),image)

# Tools on which the module does not depend.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
BENCHSTAT   := golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da

.DEFAULT_GOAL := help
.PHONY: help build image demo check vet unit lint test race raceunit crash swarm storm soak powerloss upgrade fuzz differ vuln bench bench-compare \
	picture release pack packages peer root tools clients install clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

build: $(WITHIN) ## the binaries, static, into bin/
	@mkdir -p bin
	$(GOBUILD) -o bin/ $(COMMANDS)

image: $(IMAGE)

# The image that "holdfast demo" contains. The program that makes it is built for
# this machine, also when the binaries are for another architecture.
$(IMAGE): $(wildcard internal/cli/demo/app/*.go internal/cli/demo/mkimage/*.go) $(MADEFOR)
	GOOS= GOARCH= go run ./internal/cli/demo/mkimage -arch $(ARCH) $@

$(MADEFOR):
	@mkdir -p .cache
	@rm -f .cache/image-*
	@touch $@

demo: ## kill a daemon under a running container and watch the container (root)
	.ci/need runc
	@$(MAKE) --no-print-directory build
	bin/holdfast demo

check: vet unit ## format, vet and the tests that need no root: fast

vet:
	@unformatted=$$(gofmt -l cmd internal $$(ls -d test 2>/dev/null)); \
	if [ -n "$$unformatted" ]; then echo "run gofmt -w on:" $$unformatted; exit 1; fi
	go vet ./...

# The packages under test that need no root.
ROOTLESS := ./test/arch ./test/differ/catalogue ./test/release ./test/soak/judge ./test/storm/model ./test/swarm/model

unit:
	go test ./internal/... ./cmd/... $(ROOTLESS)

lint: ## staticcheck, configured by staticcheck.conf
	go run $(STATICCHECK) ./...

# How tests that need root are run: with the binaries, and one package at a time,
# so that the output is in order and a benchmark is alone. "make test" runs two at a
# time, because many tests wait for seconds.
BUILT_IN = $(CURDIR)/bin
ROOTTEST = PATH="$$PATH:$(CURDIR)/.cache/bin" HOLDFAST_BIN=$(BUILT_IN) go test -p $(PACKAGES_AT_ONCE) -count=1
PACKAGES_AT_ONCE = 1
# Those that "make unit" does not run. "make storm" runs the model against the engine.
ROOTED   = $(filter-out $(ROOTLESS) ./test/storm,$(patsubst $(shell go list -m)/%,./%,$(shell go list ./test/...)))

test: PACKAGES_AT_ONCE = 2
test: root packages ## everything; installs what is missing (root)
	@$(MAKE) --no-print-directory build tools clients vet unit
	@$(MAKE) --no-print-directory vuln
	@$(MAKE) --no-print-directory race
	$(ROOTTEST) -timeout 20m $(ROOTED)
	@$(MAKE) --no-print-directory fuzz AT_ONCE=6

# The race detector needs a C compiler, and makes programs several times slower. A
# daemon or shim writes its reports into the daemon's folder, and a report fails
# the test (test/kit/race.go).
RACED    ?= ./internal/... ./cmd/...
RACETEST ?= TestContainerNeverNoticesTheDaemonsEnd|TestEverythingWorksAfterARestore|TestContainerOutlivesItsShim
race: BUILT_IN = $(CURDIR)/.cache/race
race: root packages raceunit ## the race detector over all unit tests and a short crash test (root)
	@$(MAKE) --no-print-directory image tools
	CGO_ENABLED=1 go build -race -buildvcs=false -ldflags '$(STAMP)' -o .cache/race/ $(filter-out %-init,$(COMMANDS))
	@# The init runs in containers, which may have no C library.
	$(GOBUILD) -o .cache/race/ ./cmd/holdfast-init
	$(ROOTTEST) -timeout 20m -v -run '$(RACETEST)' ./test/crash

raceunit: image
	.ci/need gcc
	@[ -e /usr/include/stdio.h ] || .ci/need libc6-dev
	CGO_ENABLED=1 go test -race -vet=off -timeout 20m $(RACED)

crash: root packages ## kill daemons at every failpoint, and check the state afterwards (root)
	@$(MAKE) --no-print-directory build tools
	$(ROOTTEST) -timeout 20m -v ./test/crash

# A new seed each time, which it prints. FAULTS=10000 plays so many faults instead of
# a time; PER is how many faults a round has; BESIDE is with how many daemons it plays at
# once; KINDS are the kinds of faults, with commas between; SHRINK=1 shortens a plan that
# fails.
SEED ?= 0
FAULTS ?= 0
PER ?= 40
BESIDE ?= 1
# Faults of which the model knows what they leave best, for KINDS='$(CALMER)'. After the others
# it has raised most of its false alarms.
comma := ,
empty :=
CALMER := $(subst $(empty) $(empty),$(comma),$(strip kill-daemon kill-shim kill-container kill-event-server kill-other freeze-daemon freeze-shim \
	reload takeover upgrade-shims upgrade-daemon term-daemon))
storm: TIME = 3m
storm: root packages ## random operations and faults against a model for TIME (3m) or FAULTS faults; SEED=n plays a seed again (root)
	@$(MAKE) --no-print-directory build tools
	$(ROOTTEST) -timeout 0 -v -run '^TestStorm$$' ./test/storm -storm.time='$(TIME)' -storm.faults='$(FAULTS)' -storm.per='$(PER)' -storm.beside='$(if $(ROUND),1,$(BESIDE))' -storm.seed='$(SEED)' -storm.kinds='$(KINDS)' -storm.out='$(CURDIR)/.cache/storm' $(if $(ROUND),-storm.round='$(ROUND)') $(if $(SHRINK),-shrink)

# The storm has a new seed each time, which it prints.
swarm: TIME = 1h
swarm: root packages ## the tests of swarm mode, with the parts that wait for minutes, and a storm for TIME (1h); SEED=n plays it again (root)
	@$(MAKE) --no-print-directory build tools
	$(ROOTTEST) -timeout 0 -v ./test/swarm -args -swarm.long -swarm.time '$(TIME)' -swarm.seed '$(SEED)'

# The picture and the table are written into OUT.
CONTAINERS ?= 200
OUT ?= .cache/soak
soak: TIME = $(if $(SHORT),10m,1h)
soak: root packages ## CONTAINERS (200) containers and their clients for TIME (1h), or ten minutes with SHORT=1: nothing may grow (root)
	@$(MAKE) --no-print-directory build tools
	$(ROOTTEST) -timeout 0 -v -run '^TestNothingGrows$$' ./test/soak -args -soak.time '$(TIME)' -soak.containers '$(CONTAINERS)' -soak.out '$(abspath $(OUT))'

upgrade: root packages ## daemons of every version in test/upgrade/versions.txt with shims of every other (root)
	@$(MAKE) --no-print-directory build tools
	$(ROOTTEST) -timeout 20m -v ./test/upgrade

powerloss: root packages ## cut the power at any moment for TIME (10m), with SEED, on FS (ext4, xfs, btrfs); or REPLAY=a cut that failed (root)
	.ci/need mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs
	@$(MAKE) --no-print-directory build tools
	$(ROOTTEST) -timeout 0 -v ./test/power -args -time '$(if $(filter command environment,$(firstword $(origin TIME))),$(TIME),10m)' \
		-fs '$(FS)' -seed '$(or $(SEED),0)' -replay '$(if $(REPLAY),$(abspath $(REPLAY)))' -keep $(CURDIR)/.cache/power

TIME ?= 10s
ONLY ?= .
AT_ONCE ?= 2
fuzz: root packages ## run each fuzz target that matches ONLY for TIME (10s), AT_ONCE (2) beside each other (root)
	@$(MAKE) --no-print-directory build tools
	PATH="$$PATH:$(CURDIR)/.cache/bin" HOLDFAST_BIN=$(CURDIR)/bin go run ./test/runfuzz -time '$(TIME)' -only '$(ONLY)' -at-once '$(AT_ONCE)'

differ: root packages ## run the same commands on Holdfast and a current dockerd, those that match ONLY (root)
	@$(MAKE) --no-print-directory build tools
	$(ROOTTEST) -timeout 120m ./test/differ -full -run 'TestSameAnswers/$(ONLY)'

# If the database can't be fetched, the target says so and succeeds, so that the
# tests also run without a network. With STRICT=1 it fails.
vuln: ## check the binaries with the Go vulnerability database
	@mkdir -p .cache/bin
	@go build -o .cache/bin/vuln ./test/vuln
	.cache/bin/vuln || [ "$$? $(STRICT)" = "3 " ]

REF ?= HEAD
COUNT ?= 6
bench-compare: ## compare the Go benchmarks of the work tree with those of REF (HEAD), COUNT (6) runs each
	BENCHSTAT=$(BENCHSTAT) .ci/bench-compare '$(REF)' '$(COUNT)'

bench: root packages ## run all benchmarks, also on a current dockerd, and on podman if it is installed (root)
	.ci/need iperf3
	.ci/peer builder
	@$(MAKE) --no-print-directory build tools
	PATH="$$PATH:$(CURDIR)/.cache/debian/usr/sbin:$(CURDIR)/.cache/debian/usr/bin"; $(ROOTTEST) -timeout 60m -v ./test/bench -full -write $(CURDIR)/docs/benchmarks.md

picture: root ## the picture of the front page: a timeline around a kill -9 (root)
	.ci/need runc chromium nft:nftables ip:iproute2
	@$(MAKE) --no-print-directory build
	.ci/picture docs/pictures/timeline.png

root:
	@[ "$$(id -u)" = 0 ] || { echo "this starts daemons and containers: run it as root ('make check' needs no root)"; exit 1; }

packages:
	.ci/need runc mkfs.ext4:e2fsprogs nft:nftables ip:iproute2 ps:procps tmux /bin/busybox:busybox-static chromium \
		iptables ufw dbus-daemon /usr/lib/python3/dist-packages/firewall:python3-firewall \
		/usr/lib/python3/dist-packages/nftables:python3-nftables
	.ci/unpack dockerd:docker.io,containerd firewalld:firewalld
	.ci/peer

peer: ## a current dockerd and runc to compare with, into ~/.cache/holdfast/peer
	.ci/peer

# Docker's own client and its plugin buildx, which the tests use in addition to
# holdfast, unless they are installed. The client is built from a module that the
# command line requires anyway, as is BuildKit's frontend for Dockerfiles. The plugin's module requires newer versions than ours
# does, so it is built by its own.
BUILDX  := github.com/docker/buildx/cmd/buildx@v0.38.2
# A file with the version's name is beside the plugin: compose refuses one without a version.
BUILDX_IS = $(lastword $(subst @, ,$(BUILDX)))
PLUGINS := /usr/libexec/docker/cli-plugins /usr/lib/docker/cli-plugins /usr/local/lib/docker/cli-plugins
tools:
	@mkdir -p .cache/bin
	@command -v docker >/dev/null || go build -trimpath -gcflags=github.com/docker/cli/cmd/docker=-lang=go1.26 \
		-o .cache/bin/docker github.com/docker/cli/cmd/docker
	@[ -e .cache/bin/.buildx-$(BUILDX_IS) ] || ls $(addsuffix /docker-buildx,$(PLUGINS)) >/dev/null 2>&1 || { \
		GOFLAGS=-trimpath GOBIN=$(CURDIR)/.cache/bin go install -ldflags "-X github.com/docker/buildx/version.Version=$(BUILDX_IS)" $(BUILDX) && mv .cache/bin/buildx .cache/bin/docker-buildx && \
		rm -f .cache/bin/.buildx-* && touch .cache/bin/.buildx-$(BUILDX_IS); }
	@CGO_ENABLED=0 go build -trimpath -o .cache/bin/dockerfile-frontend github.com/moby/buildkit/frontend/dockerfile/cmd/dockerfile-frontend

# Other clients that build images, for test/build, and programs for another
# architecture than this machine's. npm may not run what packages bring.
COMPOSE   := v2.40.3
DOCKERODE := 5.0.1
clients:
	.ci/need node:nodejs npm python3 /usr/lib/python3/dist-packages/docker:python3-docker
	.ci/unpack qemu-aarch64-static:qemu-user-static
	@[ -e .cache/bin/docker-compose ] || ls $(addsuffix /docker-compose,$(PLUGINS)) >/dev/null 2>&1 || .ci/compose $(COMPOSE)
	@[ -e .cache/node/node_modules/dockerode ] || npm install --silent --ignore-scripts --no-audit --no-fund --no-package-lock --prefix .cache/node dockerode@$(DOCKERODE)

# The version is the newest of CHANGELOG.md, unless VERSION is set on the command
# line.
RELEASE = $(if $(filter command,$(firstword $(origin VERSION))),$(VERSION))
release: ## build the archives of a release into dist/ twice and compare them; with TAG=1 tag it
	VERSION='$(RELEASE)' TAG='$(TAG)' VERIFY='$(VERIFY)' .ci/release

# Puts the contents of a release's archive into the folder PACK.
pack: $(WITHIN)
	mkdir -p $(PACK)
	$(GOBUILD) -o $(PACK)/ $(COMMANDS)
	cp LICENSE README.md CHANGELOG.md SECURITY.md $(PACK)/
	cp -R docs contrib/systemd contrib/sysusers.d $(PACK)/

PREFIX ?= /usr/local
UNITS   := $(PREFIX)/lib/systemd/system
USERS   := $(PREFIX)/lib/sysusers.d
install: build ## install the binaries into PREFIX/bin (/usr/local), and the units and the group for systemd
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(UNITS) $(DESTDIR)$(USERS)
	install bin/holdfast bin/holdfastd bin/holdfast-shim bin/holdfast-init bin/holdfast-build bin/holdfast-swarm $(DESTDIR)$(PREFIX)/bin/
	sed 's#/usr/local/bin/#$(PREFIX)/bin/#' contrib/systemd/holdfast.service >$(DESTDIR)$(UNITS)/holdfast.service
	install -m 644 contrib/systemd/holdfast.socket $(DESTDIR)$(UNITS)/
	install -m 644 contrib/sysusers.d/holdfast.conf $(DESTDIR)$(USERS)/
	@# A distribution's package does this itself, and a host without systemd does not need it.
	if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then \
		systemd-sysusers $(USERS)/holdfast.conf && systemctl daemon-reload; \
	fi

clean: ## remove all build results
	rm -rf bin dist .cache $(IMAGE)
