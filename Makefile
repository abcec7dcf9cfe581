# make help lists what there is to do. Whatever a target needs is installed
# first, and only if it is missing: see scripts/with-tools.sh.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
MAKEFLAGS += --no-print-directory

TOOLS := scripts/with-tools.sh
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tacit

# gRPC's tracing brings html/template, and what runs templates makes the linker
# keep every method of everything: a third of a program, and of its memory.
export GOFLAGS := $(strip $(GOFLAGS) -tags=grpcnotrace)

# The linter is a program of its own, so that its dependencies are not ours.
LINT_VERSION := v2.15.0
LINT := $(CACHE)/golangci-lint-$(LINT_VERSION)/golangci-lint

# So is Kubernetes for make e2e, and what it is made of is in its directory's
# name: built once, as it takes ten minutes.
KUBERNETES_VERSION := $(shell sed -n 's/^\tk8s.io\/kubernetes //p' test/kube/kubernetes/go.mod)
KUBERNETES_SOURCES := $(wildcard test/kube/kubernetes/* test/kube/coredns/*)
KUBERNETES := $(CACHE)/kubernetes-$(KUBERNETES_VERSION)-$(shell cat $(KUBERNETES_SOURCES) | sha256sum | cut -c 1-12)

# One of the loads that make perf puts on.
FORTIO_VERSION := v1.63.10
FORTIO := $(CACHE)/fortio-$(FORTIO_VERSION)/fortio

# Packages under test at a time; most of the work is done by programs that
# the tests start.
PARALLEL := 2
# A number of inputs: a time may end in "context deadline exceeded", which is
# no finding.
FUZZ_INPUTS := 20000x

# go build -v names each package that it compiles; on a fresh machine that is
# a thousand, so only every fiftieth shows that it goes on.
PROGRESS := awk '/^[a-zA-Z0-9._~\/-]+$$/ {if (++n % 50 == 0) print "  " n " packages compiled"; fflush(); next} {print; fflush()}' >&2

.PHONY: help
help: ## Show this list
	awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build all programs into bin/, and the manual pages of tacit
	CGO_ENABLED=0 $(TOOLS) build go build -v -trimpath -o bin/ ./cmd/... 2>&1 | $(PROGRESS)
	bin/tacit man --dir bin/man

# For packages, DESTDIR is put in front.
PREFIX := /usr/local
.PHONY: install
install: build ## Install tacit with its manual pages and completions below PREFIX (/usr/local)
	install -D -t $(DESTDIR)$(PREFIX)/bin bin/tacit
	ln -sf tacit $(DESTDIR)$(PREFIX)/bin/kubectl-tacit
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man1 bin/man/*.1
	bin/tacit completion bash | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/bash-completion/completions/tacit
	bin/tacit completion zsh | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_tacit
	bin/tacit completion fish | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/tacit.fish

.PHONY: demo
demo: ## See it work on two nodes of this machine, as root (KEEP=1 leaves it up)
	$(TOOLS) demo $(MAKE) build
	bin/tacit demo $(if $(KEEP),--keep)

.PHONY: test
test: ## Run every test, as root: unit, namespaces and a little fuzzing
	$(TOOLS) test $(MAKE) gotest fuzz

.PHONY: gotest
gotest: $(KUBERNETES)
	echo "building the servers that tests talk to, once: a few minutes"
	go run ./test/servers/build spire istiod hbone 2>&1 | $(PROGRESS)
	go test -race -timeout 25m -p $(PARALLEL) ./...
	# The race detector allocates by itself: what counts allocations runs without.
	go test -run 'Alloc' ./proxy/...

.PHONY: fuzz
fuzz:
	grep -rl --include='*_test.go' '^func Fuzz' . | sort | while read -r file; do
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$file"); do
			printf 'fuzz %s %s: ' "$$(dirname "$$file")" "$$target"
			out=$$(go test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZ_INPUTS) -timeout 5m "$$(dirname "$$file")" 2>&1) || { echo "$$out"; exit 1; }
			tail -n 1 <<<"$$out"
		done
	done

.PHONY: lint
lint: ## Run go vet, gofmt and golangci-lint
	$(TOOLS) build $(MAKE) lintall

.PHONY: lintall
lintall: $(LINT)
	echo "go vet"
	go vet ./...
	echo "gofmt"
	unformatted=$$(gofmt -l $$(git ls-files '*.go'))
	[ -z "$$unformatted" ] || { echo "not formatted by gofmt:" $$unformatted; exit 1; }
	echo "golangci-lint $(LINT_VERSION)"
	$(LINT) run --timeout 20m ./...

$(LINT):
	echo "building golangci-lint $(LINT_VERSION), once"
	GOBIN=$(dir $(LINT)) go install -v github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION) 2>&1 | $(PROGRESS)

.PHONY: e2e
e2e: ## Test on a Kubernetes of two nodes made here, as root (KUBECONFIG=file REGISTRY=name uses another, KEEP=1 leaves it up, RUN=regexp)
	$(TOOLS) e2e $(MAKE) e2etest

.PHONY: e2etest
e2etest: $(if $(KUBECONFIG),,$(KUBERNETES))
	$(if $(KUBECONFIG),,go run ./test/servers/build istiod 2>&1 | $(PROGRESS))
	echo "building images"
	CGO_ENABLED=0 go build -v -trimpath -ldflags '-s -w' -o bin/e2e/ ./cmd/... ./test/kube/app 2>&1 | $(PROGRESS)
	CGO_ENABLED=0 go build -v -trimpath -ldflags '-s -w' -tags inpod,grpcnotrace -o bin/e2e/inpod/ ./cmd/tacit 2>&1 | $(PROGRESS)
	test/kube/next.sh bin/e2e/next 2>&1 | $(PROGRESS)
	go test -v -count 1 -timeout $(if $(KEEP),0,$(if $(MEMORY),1h,48m)) $(if $(RUN),-run '$(RUN)') ./test/kube -args $(if $(KEEP),-keep) $(if $(MEMORY),-memory '$(MEMORY)') -programs '$(CURDIR)/bin/e2e' \
		$(if $(KUBECONFIG),-kubeconfig '$(abspath $(KUBECONFIG))' -registry '$(REGISTRY)',-kubernetes '$(KUBERNETES)')

# Where the tests find it.
.PHONY: kubernetes
kubernetes: $(KUBERNETES)
	echo $(KUBERNETES)

$(KUBERNETES):
	echo "building Kubernetes $(KUBERNETES_VERSION) and CoreDNS, once: ten minutes on two CPUs"
	new=$(KUBERNETES).new$$$$
	trap 'rm -rf "$$new"' EXIT
	mkdir -p "$$new"
	version=k8s.io/component-base/version
	major=$$(cut -d . -f 1 <<<$(KUBERNETES_VERSION:v%=%))
	minor=$$(cut -d . -f 2 <<<$(KUBERNETES_VERSION:v%=%))
	cd test/kube/kubernetes
	CGO_ENABLED=0 go build -v -trimpath -buildvcs=false -o "$$new/kubernetes" \
		-ldflags "-s -w -X $$version.gitVersion=$(KUBERNETES_VERSION) -X $$version.gitMajor=$$major -X $$version.gitMinor=$$minor" . 2>&1 | $(PROGRESS)
	cd ../coredns
	CGO_ENABLED=0 go build -v -trimpath -buildvcs=false -ldflags '-s -w' -o "$$new/coredns" . 2>&1 | $(PROGRESS)
	mv -T "$$new" $(KUBERNETES)

.PHONY: perf
perf: ## Measure beside direct connections, HAProxy and Envoy, and what pods take, as root (ARGS='--run bulk', OUT=name)
	$(TOOLS) perf $(MAKE) build perfrun
	$(if $(ARGS),,$(MAKE) memory OUT=$(or $(OUT),bin/perf)-pods.json)

.PHONY: perfrun
perfrun: $(FORTIO)
	go build -o bin/perf ./perf
	PATH=$$PATH:$(dir $(FORTIO)) bin/perf --json $(or $(OUT),bin/perf).json --page $(or $(OUT),bin/perf).html $(ARGS)
	echo "written: $(or $(OUT),bin/perf).json, $(or $(OUT),bin/perf).html"

$(FORTIO):
	echo "building fortio $(FORTIO_VERSION), once"
	GOBIN=$(dir $(FORTIO)) go install -v fortio.org/fortio@$(FORTIO_VERSION) 2>&1 | $(PROGRESS)

.PHONY: memory
memory: ## Measure what pods take of a node's memory, and with Envoy beside each, as root (OUT=file.json)
	$(TOOLS) e2e $(MAKE) memorytest

.PHONY: memorytest
memorytest: $(KUBERNETES)
	$(MAKE) e2etest RUN='^TestMemory$$' MEMORY='$(abspath $(or $(OUT),bin/memory.json))'

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin
