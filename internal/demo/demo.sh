#!/usr/bin/env bash
# A Debian root file system in six layers, used through plyfs, then through the kernel's overlayfs.
#
# Needs root, /dev/fuse and a Debian mirror (the one that this machine's apt uses), and about 2 GB in $TMPDIR. Installs
# through apt what is missing. Everything happens in one temporary directory and in a mount and process namespace
# of its own; both are gone afterwards, however it ends.
#
#   PLYFS=PROGRAM      shows that program (with the arguments of fuse-overlayfs) instead of the plyfs built here;
#                      PLYFS=kernel shows the kernel's overlayfs
#   DEMO_OPTS=a,b      further mount options
#   DEMO_MIRROR=URL    the Debian mirror; DEMO_SUITE=NAME the release
#   DEMO_CACHE=DIR     keeps debootstrap's downloads there for the next run
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

die() {
	printf 'demo: %s\n' "$*" >&2
	exit 1
}

[ "$(id -u)" = 0 ] || die "needs root, for chroot and mount: sudo make demo"
[ "$(uname -s)" = Linux ] || die "needs Linux"
command -v apt-get >/dev/null || die "needs apt, on Debian or one of its derivatives"
[ -c /dev/fuse ] || die "there is no /dev/fuse: load the module (modprobe fuse), or give the container --device /dev/fuse"

dir=$(mktemp -d "${TMPDIR:-/tmp}/plyfs-demo.XXXXXX")
child=

# Whatever is mounted or runs dies with the namespaces; the directory is removed once they are gone.
# shellcheck disable=SC2317  # called by the trap
cleanup() {
	local status=$? i
	trap - EXIT INT TERM HUP
	if [ -n "$child" ]; then
		kill -KILL "$child" 2>/dev/null || true
		wait "$child" 2>/dev/null || true
	fi
	for ((i = 0; i < 100; i++)); do
		rm -rf --one-file-system "$dir" 2>/dev/null && break
		sleep 0.1
	done
	[ ! -e "$dir" ] || printf 'demo: could not remove %s\n' "$dir" >&2
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# install PACKAGE... installs what is missing of them.
install() {
	local p missing=()
	for p; do
		[ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	printf 'Installing %s ...\n' "${missing[*]}"
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "${missing[@]}" >"$dir/apt.log" 2>&1 ||
		{ apt-get update -qq >"$dir/apt.log" 2>&1 &&
			DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "${missing[@]}" >>"$dir/apt.log" 2>&1; } ||
		{ cat "$dir/apt.log" >&2; die "apt could not install ${missing[*]}"; }
}

# mirror sets MIRROR and SUITE to the first Debian release in apt's own configuration.
mirror() {
	local line
	line=$(apt-get indextargets --format "\$(REPO_URI) \$(CODENAME) \$(COMPONENT)" 'Created-By: Packages' |
		grep -E '^(https?|file|mirror\+file):' | grep -E ' main$' | grep -vE ' [^ ]*-[^ ]* main$' | head -n 1) || true
	MIRROR=${DEMO_MIRROR:-${line%% *}}
	case $MIRROR in
	mirror+file:*) MIRROR=$(grep -m 1 -oE '^https?://[^ ]*' "${MIRROR#mirror+file:}") ;;
	esac
	line=${line#* }
	SUITE=${DEMO_SUITE:-${line%% *}}
	[ -n "$MIRROR" ] || die "found no Debian mirror in apt's configuration: set DEMO_MIRROR=URL and DEMO_SUITE=NAME"
	[ -n "$SUITE" ] || die "found no Debian release in apt's configuration: set DEMO_SUITE=NAME"
}

install debootstrap debian-archive-keyring attr util-linux
mirror
mkdir "$dir/bin"
printf 'Building ...\n'
(cd "$root" && CGO_ENABLED=0 go build -o "$dir/bin/treecmp" ./internal/demo/treecmp)
if [ -z "${PLYFS:-}" ]; then
	(cd "$root" && CGO_ENABLED=0 go build -o "$dir/bin/plyfs" ./cmd/plyfs)
	PLYFS=$dir/bin/plyfs NAME=plyfs
	OPTS=redirect_dir=on,metacopy=on,index=on
elif [ "$PLYFS" = kernel ]; then
	NAME="the kernel's overlayfs" OPTS=redirect_dir=on,metacopy=on,index=on
else
	PLYFS=$(command -v "$PLYFS") || die "PLYFS: no such program"
	NAME=${PLYFS##*/} OPTS=
fi
OPTS=$OPTS${DEMO_OPTS:+${OPTS:+,}$DEMO_OPTS}
# What apt needs to reach the mirror as this machine does: proxies, and leave for an archive of some age.
apt-config dump | grep -E '^Acquire::(https?::(Proxy|Verify)|Check-|Retries|ForceIPv|Max-ValidTime)' >"$dir/apt.conf" || true

# The stack index that the mounts build goes with everything else.
export DIR=$dir MIRROR SUITE PLYFS NAME OPTS PLYFS_INDEX_DIR=$dir/index
unshare --mount --propagation private --pid --fork --kill-child --mount-proc "$here/layers.sh" &
child=$!
status=0
wait "$child" || status=$?
child=
exit "$status"
