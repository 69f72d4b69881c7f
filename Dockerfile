# Builds the files to download, the same bytes on every machine, and nothing else: the last stage holds only them.
#
#   docker build --output dist .                              for this machine's architecture
#   docker build --output dist --build-arg GOARCH=arm64 .     for another
#
# Debian packages come from a snapshot of the archive, so that the day of the build does not matter.
FROM golang:1.26.8-bookworm AS build
ARG GOARCH
ARG SNAPSHOT=20261101T000000Z
RUN printf 'Types: deb\nURIs: http://snapshot.debian.org/archive/%s/%s\nSuites: %s\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\nCheck-Valid-Until: no\n\n' \
        debian "$SNAPSHOT" bookworm >/etc/apt/sources.list.d/debian.sources \
    && printf 'Types: deb\nURIs: http://snapshot.debian.org/archive/%s/%s\nSuites: %s\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\nCheck-Valid-Until: no\n' \
        debian-security "$SNAPSHOT" bookworm-security >>/etc/apt/sources.list.d/debian.sources \
    && apt-get update
WORKDIR /src
# Modules first: they change less often than the code.
COPY go.mod go.sum ./
COPY scripts/bundle/go.mod scripts/bundle/go.sum scripts/bundle/
RUN go mod download && cd scripts/bundle && go mod download
COPY scripts/deps scripts/env.sh scripts/
RUN scripts/deps build arm64 amd64
COPY . .
RUN scripts/build --dist

FROM scratch
COPY --from=build /src/dist/ /
