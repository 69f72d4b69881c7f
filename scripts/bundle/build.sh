#!/usr/bin/env bash
# Builds the programs that a node carries inside atoll and packs them to pkg/runtime/bundle/payload/<arch>/.
# Usage: [GOARCH=arm64] scripts/bundle/build.sh [--force]
# Does nothing when no input has changed since the last time (the hash of the inputs is kept beside the payload).
set -euo pipefail
. "$(dirname "$0")/../env.sh"
cd "$ROOT/scripts/bundle"
# shellcheck source=scripts/bundle/versions
. ./versions

TRIPLET=$(triplet "$GOARCH")
PAYLOAD=$ROOT/pkg/runtime/bundle/payload/$GOARCH
WORK=$ROOT/out/bundle/$GOARCH
STAGE=$WORK/stage
CC=gcc
[ "$GOARCH" = "$HOST_ARCH" ] || CC=$TRIPLET-gcc
export GOARCH CC

# Every file of this folder, the compilers and the architecture.
inputs() {
	find . ../../pkg/network/policy/cniplugin -type f ! -name '*_test.go' | LC_ALL=C sort | xargs sha256sum
	go version
	"$CC" --version | head -n 1
	echo "$GOARCH"
}

build_runc() {
	local flags=(-linkmode external -extldflags '"-static"')
	if [ "$GOARCH" != "$HOST_ARCH" ]; then
		# The library is unpacked beside the build: the host's package database stays as it is.
		"$ROOT/scripts/bundle/debs.sh" "$WORK/seccomp" libseccomp-dev
		export PKG_CONFIG_LIBDIR=$WORK/seccomp/root/usr/lib/$TRIPLET/pkgconfig PKG_CONFIG_SYSROOT_DIR=$WORK/seccomp/root
	fi
	CGO_ENABLED=1 go build -trimpath -buildvcs=false -tags 'seccomp netgo osusergo urfave_cli_no_docs' \
		-ldflags "-s -w ${flags[*]}" -o "$STAGE/bin/runc" github.com/opencontainers/runc
}

build_shim() {
	local version
	version=$(module_version go.mod github.com/containerd/containerd/v2)
	CGO_ENABLED=0 go build "${GO_FLAGS[@]}" -ldflags "-s -w -X github.com/containerd/containerd/v2/version.Version=$version" \
		-o "$STAGE/bin/containerd-shim-runc-v2" github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
}

build_cni() {
	local base=github.com/containernetworking/plugins version plugins plugin
	version=$(module_version go.mod $base)
	read -ra plugins <<<"$CNI_PLUGINS"
	rm -rf "$WORK/multicall"
	host_go build -o "$WORK/tools/multicall" ./cmd/multicall
	"$WORK/tools/multicall" -out "$WORK/multicall" -into cniplugins "${plugins[@]/#/$base/plugins/}"
	CGO_ENABLED=0 go build "${GO_FLAGS[@]}" -overlay "$WORK/multicall/overlay.json" \
		-ldflags "-s -w -X $base/pkg/utils/buildversion.BuildVersion=$version" -o "$STAGE/cni/cniplugins" ./cniplugins
	for plugin in "${plugins[@]}"; do ln -s cniplugins "$STAGE/cni/${plugin##*/}"; done
}

# Our own CNI plugin is in the module of atoll, beside the controller that it asks. It needs the standard library alone.
build_policy() {
	(cd "$ROOT" && CGO_ENABLED=0 go build "${GO_FLAGS[@]}" -ldflags '-s -w' -o "$STAGE/cni/atoll-policy" ./pkg/network/policy/cniplugin/atoll-policy)
}

build_hosttools() {
	CGO_ENABLED=0 go build "${GO_FLAGS[@]}" -ldflags '-s -w' -o "$STAGE/bin/hosttools" ./hosttools
	ln -s hosttools "$STAGE/bin/nft"
	# A folder of their own, for the end of PATH: a host's own mount is better when there is one.
	local tool
	for tool in mount umount modprobe; do ln -s ../hosttools "$STAGE/bin/aux/$tool"; done
}

build_pause() {
	"$CC" -Os -Wall -Wextra -Werror -ffreestanding -nostdlib -static -fno-stack-protector -fno-asynchronous-unwind-tables \
		-Wl,--build-id=none -Wl,-z,noseparate-code -Wl,-z,noexecstack -s -o "$WORK/pause" pause/pause.c
	host_go run ./cmd/ociimage -arch "$GOARCH" -name "$PAUSE_IMAGE" -user 65535:65535 -out "$STAGE/images/pause.tar" "$WORK/pause"
}

# nft is Debian's program with its libraries and loader; hosttools starts it.
collect_nft() {
	"$ROOT/scripts/bundle/debs.sh" "$WORK/nft" nftables
	host_go run ./cmd/elfclosure -root "$WORK/nft/root" -out "$STAGE/lib/nft" usr/sbin/nft
	cp "$WORK/nft/VERSIONS" "$STAGE/lib/nft/VERSIONS"
	# The licences of what is passed on go with it.
	local file package
	mkdir -p "$STAGE/lib/nft/licenses"
	for file in "$WORK"/nft/root/usr/share/doc/*/copyright; do
		package=$(basename "$(dirname "$file")")
		cp -L "$file" "$STAGE/lib/nft/licenses/$package"
	done
}

pack() {
	host_go run ./cmd/pack -dir "$STAGE" -tar "$WORK/bundle.tar" -manifest "$WORK/MANIFEST"
	local flags
	read -ra flags <<<"$ZSTD_FLAGS"
	# From a file, not a pipe: then its size is in the header and the reader sets aside no more memory than that.
	zstd "${flags[@]}" -T1 -q -f "$WORK/bundle.tar" -o "$WORK/bundle.tar.zst"
	rm "$WORK/bundle.tar"
	mkdir -p "$PAYLOAD"
	mv "$WORK/MANIFEST" "$PAYLOAD/MANIFEST"
	mv "$WORK/bundle.tar.zst" "$PAYLOAD/bundle.tar.zst"
}

main() {
	need go build
keep_out
	need "$CC" "$([ "$CC" = gcc ] && echo build || echo "$GOARCH")"
	need zstd build
	one_at_a_time "bundle-$GOARCH"
	local hash
	hash=$(inputs | sha256sum | cut -d' ' -f1)
	if [ "${1:-}" != --force ] && [ "$(cat "$PAYLOAD/.inputs" 2>/dev/null)" = "$hash" ] && [ -s "$PAYLOAD/bundle.tar.zst" ] && [ -s "$PAYLOAD/MANIFEST" ]; then
		step "bundle $GOARCH: nothing changed ($(size_of "$PAYLOAD/bundle.tar.zst"))"
		return
	fi
	rm -rf "$STAGE" "$PAYLOAD/.inputs"
	mkdir -p "$STAGE"/{bin/aux,cni,images,lib/nft} "$WORK/tools"
	step "bundle $GOARCH: runc $(module_version go.mod github.com/opencontainers/runc), static, with seccomp"
	build_runc
	step "bundle $GOARCH: containerd shim $(module_version go.mod github.com/containerd/containerd/v2)"
	build_shim
	step "bundle $GOARCH: CNI plugins $(module_version go.mod github.com/containernetworking/plugins), as one program"
	build_cni
	build_policy
	step "bundle $GOARCH: nft, mount, umount, modprobe, pause"
	build_hosttools
	build_pause
	collect_nft
	step "bundle $GOARCH: pack"
	pack
	echo "$hash" >"$PAYLOAD/.inputs"
	step "bundle $GOARCH: ready, $(size_of "$PAYLOAD/bundle.tar.zst") in $PAYLOAD"
}

# On one line: the script may be edited while it runs, and nothing after this is read.
main "$@"; exit
