#!/usr/bin/env bash
# Downloads Debian (or Ubuntu) packages with all they depend on and unpacks them into a folder, changing nothing on the host.
# Usage: [GOARCH=arm64] scripts/bundle/debs.sh DIR PACKAGE...
# Leaves DIR/root (the files) and DIR/VERSIONS. apt checks signatures and checksums against the keys that the host trusts.
# For another architecture it keeps package lists of its own below out/, so dpkg never hears of that architecture.
set -euo pipefail
. "$(dirname "$0")/../env.sh"
DIR=$1
shift
APT=(-o APT::Sandbox::User=root -o Debug::NoLocking=1 -qq)
need apt-get build
need dpkg-deb build

# foreign_lists prepares apt options for an architecture that is not the host's.
foreign_lists() {
	local state=$ROOT/out/bundle/apt-$GOARCH
	mkdir -p "$state"/{lists/partial,cache/archives/partial,etc/sources.list.d}
	: >"$state/status"
	# shellcheck disable=SC1091
	. /etc/os-release
	if [ "$ID" = ubuntu ] && [ "$GOARCH" != amd64 ]; then
		# Ubuntu keeps its other architectures on another server.
		echo "deb http://ports.ubuntu.com/ubuntu-ports $VERSION_CODENAME main universe" >"$state/etc/sources.list"
		APT+=(-o Dir::Etc::SourceList="$state/etc/sources.list" -o Dir::Etc::SourceParts="$state/etc/sources.list.d")
	fi
	APT+=(-o Dir::State="$state" -o Dir::State::status="$state/status" -o Dir::Cache="$state/cache" -o APT::Architecture="$GOARCH" -o APT::Architectures="$GOARCH")
	[ -n "$(find "$state/lists" -name '*_Packages*' -mmin -1440 -print -quit)" ] || apt-get "${APT[@]}" update >&2
}

[ "$GOARCH" = "$HOST_ARCH" ] || foreign_lists
closure=$(apt-cache "${APT[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$@" |
	grep -E '^[a-z0-9]' | sort -u || true)
[ -n "$closure" ] || die "apt knows no package $*" "apt-get update"
rm -rf "$DIR"
mkdir -p "$DIR/debs" "$DIR/root"
# shellcheck disable=SC2086 # one word a package
(cd "$DIR/debs" && apt-get "${APT[@]}" download $closure >&2)
for deb in "$DIR"/debs/*.deb; do
	dpkg-deb -x "$deb" "$DIR/root"
	dpkg-deb -f "$deb" Package Version | awk '{ printf "%s ", $2 } END { print "" }'
done | sort >"$DIR/VERSIONS"
rm -rf "$DIR/debs"
