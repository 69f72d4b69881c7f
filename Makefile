# Each target is one script in scripts/; read those for what happens.
.PHONY: build dist up down test soak lint vet conformance clean

build:            ## bin/atoll with all that it carries; GOARCH=arm64 builds bin/atoll-arm64
	scripts/deps build $(GOARCH)
	scripts/build

dist:             ## dist/atoll-linux-<arch>, the file that users download, and its checksum
	scripts/deps build $(GOARCH)
	scripts/build --dist

up: build         ## a running site on this machine, with a sample app
	scripts/up

down:             ## takes away what `make up` made
	scripts/down

test:             ## every test: unit, and end to end with real pods
	scripts/test

soak:             ## the long tests
	scripts/soak

lint:             ## what is wrong without running it: formatting, vet, staticcheck, errors, shellcheck, vulnerabilities
	scripts/deps build lint
	scripts/lint

vet:              ## go vet alone
	scripts/lint vet

conformance:      ## upstream's conformance tests
	scripts/conformance

clean:            ## removes what builds made; Go's caches stay
	scripts/clean
