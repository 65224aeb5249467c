#!/bin/sh
# deps.sh PACKAGE... installs through apt those Debian packages that are missing, quietly. It asks for new package
# lists only if the ones at hand do not do.
set -u

missing=
for p; do
	[ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "deps: as root, install:$missing" >&2
	exit 1
fi
echo "Installing$missing"
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
install() {
	# shellcheck disable=SC2086  # a list of names
	DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install --no-install-recommends $missing >"$log" 2>&1 </dev/null
}
install && exit 0
apt-get -qq -o DPkg::Lock::Timeout=300 update >"$log" 2>&1 && install && exit 0
cat "$log" >&2
exit 1
