# Shared by the scripts of this folder: `. scripts/env.sh`. Sets variables and functions, starts nothing.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the variables are for the scripts that read this file

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# One set of flags for every command, because -trimpath and the tags each make a build cache of their own.
# No VCS stamp from go itself: it fails in a clone that belongs to another user, and scripts/build stamps versions.
export GOTOOLCHAIN=local
GO_TAGS=providerless,osusergo,netgo
GO_FLAGS=(-tags "$GO_TAGS" -trimpath -buildvcs=false)

HOST_ARCH=$(go env GOHOSTARCH 2>/dev/null || true)
GOARCH=${GOARCH:-$HOST_ARCH}

# keep_out makes Go leave out/ alone: what is generated there is no part of this module.
keep_out() {
	mkdir -p "$ROOT/out"
	[ -f "$ROOT/out/go.mod" ] || echo 'module out' >"$ROOT/out/go.mod"
}

# step prints what happens next with the time since the script began, on stderr so that results can be piped.
step() { printf '[%4d s] %s\n' "$SECONDS" "$*" >&2; }

# die says what went wrong and, with a second argument, what to do about it.
die() {
	printf 'Error: %s\n' "$1" >&2
	[ $# -lt 2 ] || printf 'Try:   %s\n' "$2" >&2
	exit 1
}

# need NAME GROUP: the program NAME must be there; GROUP of scripts/deps installs it.
need() { command -v "$1" >/dev/null || die "$1 is not installed" "scripts/deps $2"; }

# module_version FILE MODULE prints the version that go.mod FILE requires of MODULE.
module_version() { awk -v m="$2" '$1 == m && $2 ~ /^v/ { print $2; exit } $1 == "require" && $2 == m { print $3; exit }' "$1"; }

# triplet ARCH prints the name that Debian's compilers and library folders have for it.
triplet() {
	case $1 in
	amd64) echo x86_64-linux-gnu ;;
	arm64) echo aarch64-linux-gnu ;;
	*) die "no build for architecture $1" "use GOARCH=amd64 or GOARCH=arm64" ;;
	esac
}

# size_of FILE prints its size in MiB with one decimal.
size_of() { awk -v b="$(stat -c %s "$1")" 'BEGIN { printf "%.1f MiB", b / 1048576 }'; }

# host_go is go for tools that run during a build for another architecture.
host_go() { env GOARCH= CGO_ENABLED=0 go "$@"; }

# one_at_a_time NAME waits until no other run of a script holds NAME, and holds it until this script ends.
one_at_a_time() {
	mkdir -p "$ROOT/out"
	exec 9>"$ROOT/out/$1.lock"
	flock -n 9 || { step "waiting for another build of $1"; flock 9; }
}
