#!/usr/bin/env bash
# Runs public file-system test suites, given as ready checkouts, over a union mount and lists every failing case.
#
#   PJDFSTEST=dir   pjdfstest, compiled (the pjdfstest program beside tests/)
#   UNIONMOUNT=dir  unionmount-testsuite
#   MOUNTER=...     "kernel", or the path of plyfs or of another program with the arguments of fuse-overlayfs
#   OPTS=a,b        further mount options
#   FS="ext4 tmpfs" where the layers lie: "tmpfs", or any other word for $TMPDIR on the disk
#   CONFIGS=...     unionmount-testsuite configurations, separated by ";"
#   OUT=dir         where results are left (default: a new directory, its name is printed)
#   TIMEOUT=s       seconds after which a suite that hangs is ended (default 1800 for each of them)
#
# Exit status: 0 all cases passed, 1 some failed, 2 nothing could be run. Everything happens in a mount and process
# namespace of its own, so an interrupted run leaves no mount and no process.
set -u

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
self=$here/$(basename "${BASH_SOURCE[0]}")
MOUNTER=${MOUNTER:-kernel}
OPTS=${OPTS:-}
FS=${FS:-ext4 tmpfs}
TIMEOUT=${TIMEOUT:-1800}
CONFIGS=${CONFIGS:---ov;--ov --samefs --verify;--ov --verify;--ov --verify --ts=1;--ov=10 --samefs --verify;--ov=10 --verify;--ov=10 --maxfs=1 --verify;--ov=10 --maxfs=10 --verify}

die() { echo "conformance: $*" >&2; exit 2; }

# union_mount LOWERS UPPER WORK TARGET mounts with the mounter under test.
union_mount() {
	local o="lowerdir=$1,upperdir=$2,workdir=$3${OPTS:+,$OPTS}"
	if [ "$MOUNTER" = kernel ]; then
		mount -t overlay overlay -o "$o" "$4"
	else
		"$BIN/fuse-overlayfs" -o "$o" "$4"
	fi
}

# prepare_bin makes a directory with the mounter under the name fuse-overlayfs (plyfs is told by it to behave like
# that) and with a mount and a umount for unionmount-testsuite: it mounts type fuse.union through mount(8), and
# unmounts a layer as soon as the union is unmounted, while the server may still be letting go of it.
prepare_bin() {
	BIN=$ROOT/bin
	mkdir -p "$BIN"
	[ "$MOUNTER" = kernel ] || ln -s "$MOUNTER" "$BIN/fuse-overlayfs"
	cat >"$BIN/mount" <<-SHIM
		#!/bin/sh
		if [ "\$1 \$2" = "-t fuse.union" ]; then
			shift 2
			exec "$BIN/fuse-overlayfs" "\$@"
		fi
		exec "$(command -v mount)" "\$@"
	SHIM
	cat >"$BIN/umount" <<-SHIM
		#!/bin/sh
		n=0
		while :; do
			err=\$("$(command -v umount)" "\$@" 2>&1) && exit 0
			status=\$?
			case \$err in *busy*) ;; *) break ;; esac
			n=\$((n + 1))
			[ \$n -lt 60 ] || break
			sleep 0.05
		done
		echo "\$err" >&2
		exit \$status
	SHIM
	chmod +x "$BIN/mount" "$BIN/umount"
}

# pjd_one runs one test file of pjdfstest in a directory of its own that both lowers have.
pjd_one() {
	local file=$1 name status
	name=${file#"$PJDFSTEST"/tests/}
	name=${name%.t}
	cd "$MERGED/${name//\//.}" || { echo "not ok - no directory" >"$OUT/pjd/${name//\//.}.tap"; return; }
	timeout -k 5 300 sh "$file" >"$OUT/pjd/${name//\//.}.tap" 2>"$OUT/pjd/${name//\//.}.err" </dev/null
	status=$?
	[ $status -ne 124 ] && [ $status -ne 137 ] || echo "not ok - timed out" >>"$OUT/pjd/${name//\//.}.tap"
}

# pjd_layers makes two lowers that both have every test's directory, with different content.
pjd_layers() {
	local file name
	mkdir -p "$1/l1" "$1/l2" "$1/u" "$1/w" "$1/m"
	find "$PJDFSTEST/tests" -name '*.t' | sort >"$ROOT/pjd.list"
	while read -r file; do
		name=${file#"$PJDFSTEST"/tests/}
		name=${name%.t}
		name=${name//\//.}
		mkdir "$1/l1/$name" "$1/l2/$name"
		echo one >"$1/l1/$name/lower1"
		echo two >"$1/l2/$name/lower2"
	done <"$ROOT/pjd.list"
}

run_pjd() {
	local layers=$1 label=$2
	[ -x "$PJDFSTEST/pjdfstest" ] || { echo "pjdfstest: $PJDFSTEST is not compiled"; return 1; }
	rm -rf "$OUT/pjd"
	mkdir -p "$OUT/pjd"
	pjd_layers "$layers"
	union_mount "$layers/l1:$layers/l2" "$layers/u" "$layers/w" "$layers/m" || { echo "pjdfstest: cannot mount"; return 1; }
	export MERGED=$layers/m OUT PJDFSTEST
	export -f pjd_one
	timeout -k 10 "$TIMEOUT" xargs -a "$ROOT/pjd.list" -P 4 -I{} bash -c 'pjd_one {}'
	timeout 20 umount "$layers/m" || timeout 20 umount -l "$layers/m"
	pjd_report "$label"
}

# pjd_report prints the total and the failing cases; cases that the suite itself marks TODO do not count.
pjd_report() {
	local failed="$OUT/pjd-${1//[^a-zA-Z0-9]/_}.failed" pass fail file name planned seen
	: >"$failed"
	pass=$(cat "$OUT"/pjd/*.tap | grep -ac '^ok')
	for file in "$OUT"/pjd/*.tap; do
		name=$(basename "$file" .tap)
		grep -a '^not ok' "$file" | grep -av '# TODO' | sed -E "s#^#$name: #; s#[0-9a-f/]{300,}#LONGPATH#g" |
			cut -c 1-400 >>"$failed"
		planned=$(sed -n 's/^1\.\.\([0-9]*\).*/\1/p' "$file" | head -n 1)
		seen=$(grep -ac '^\(not \)\?ok' "$file")
		[ "${planned:-none}" = "$seen" ] || echo "$name: planned ${planned:-none} cases, ran $seen" >>"$failed"
	done
	fail=$(wc -l <"$failed")
	cat "$failed"
	echo "pjdfstest [$1]: $pass passed, $fail failed"
	[ "$fail" -eq 0 ]
}

run_unionmount() {
	local config status=0 label=$1 base=$2
	local IFS=';'
	for config in $CONFIGS; do
		IFS=' '
		if ! unionmount_one "$label" "$base" "$config"; then status=1; fi
		IFS=';'
	done
	return $status
}

# unionmount_one runs one configuration. The suite takes its directory for one file system unless it is given another
# for the lower.
unionmount_one() {
	local label="$1 $3" base=$2 config=$3 log status where
	log="$OUT/unionmount-${label//[^a-zA-Z0-9=]/_}.log"
	rm -rf "${base:?}"/*
	mkdir -p "$base/base" "$base/mnt" "$base/lower"
	where=("UNIONMOUNT_BASEDIR=$base/base" "UNIONMOUNT_MNTPOINT=$base/mnt")
	case $config in
	*--samefs*) ;;
	*)
		where+=("UNIONMOUNT_LOWERDIR=$base/lower")
		mount -t tmpfs lower "$base/lower" || return 1
		;;
	esac
	# shellcheck disable=SC2086 # a configuration is a list of words
	(cd "$UNIONMOUNT" && env "PATH=$BIN:$PATH" "PYTHONDONTWRITEBYTECODE=1" "${where[@]}" \
		timeout -k 10 "$TIMEOUT" python3 "$here/unionmount.py" "$MOUNTER" "$OPTS" $config) >"$log" 2>&1 </dev/null
	status=$?
	umount -l "$base/lower" 2>/dev/null
	grep -a '^FAIL ' "$log"
	if grep -aq '^TOTAL ' "$log"; then
		echo "unionmount [$label]: $(sed -n 's/^TOTAL //p' "$log")"
	else
		tail -n 5 "$log"
		echo "unionmount [$label]: did not finish (status $status)"
		status=1
	fi
	return $status
}

# inside runs in the namespaces.
inside() {
	local fs layers status=0
	trap 'exit 143' TERM INT
	mount -t tmpfs -o mode=755 conformance "$ROOT" || exit 2
	prepare_bin
	for fs in $FS; do
		layers=$ROOT/layers.$fs
		mkdir -p "$layers"
		if [ "$fs" = tmpfs ]; then
			mount -t tmpfs -o mode=755 layers "$layers"
		else
			mount --bind "$DISK" "$layers"
			chmod 755 "$layers"
		fi
		if [ -n "${PJDFSTEST:-}" ]; then
			mkdir -p "$layers/pjd"
			run_pjd "$layers/pjd" "$fs" || status=1
		fi
		if [ -n "${UNIONMOUNT:-}" ]; then
			mkdir -p "$layers/union"
			run_unionmount "$fs" "$layers/union" || status=1
		fi
	done
	exit $status
}

main() {
	local status child
	[ "$(id -u)" = 0 ] || die "must be run as root"
	[ -n "${PJDFSTEST:-}${UNIONMOUNT:-}" ] || die "set PJDFSTEST and/or UNIONMOUNT to checkouts of these suites"
	if [ "$MOUNTER" != kernel ]; then
		MOUNTER=$(realpath "$(command -v "$MOUNTER" || echo "$MOUNTER")")
		[ -x "$MOUNTER" ] || die "$MOUNTER is no program"
	fi
	[ -z "${PJDFSTEST:-}" ] || PJDFSTEST=$(realpath "$PJDFSTEST")
	[ -z "${UNIONMOUNT:-}" ] || UNIONMOUNT=$(realpath "$UNIONMOUNT")
	OUT=${OUT:-$(mktemp -d)}
	mkdir -p "$OUT"
	OUT=$(realpath "$OUT")
	DISK=$(mktemp -d)
	ROOT=$(mktemp -d)
	export MOUNTER OPTS FS CONFIGS OUT TIMEOUT DISK ROOT PJDFSTEST UNIONMOUNT
	echo "mounter $MOUNTER${OPTS:+ with $OPTS}; results in $OUT"
	CONFORMANCE_INSIDE=1 unshare --mount --propagation private --pid --fork --kill-child --mount-proc bash "$self" &
	child=$!
	trap 'kill $child' TERM INT
	wait $child
	status=$?
	trap - TERM INT
	rm -rf "$DISK" "$ROOT"
	return $status
}

if [ -n "${CONFORMANCE_INSIDE:-}" ]; then inside; else main; fi
