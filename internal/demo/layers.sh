#!/usr/bin/env bash
# The part of demo.sh that runs inside a mount and process namespace of its own, as its first process. The caller
# gives DIR, MIRROR, SUITE, PLYFS, NAME and OPTS in the environment.
#
# shellcheck disable=SC2016  # the scripts in single quotes are for the shells in the chroot
set -euo pipefail

started=$SECONDS
kernel_opts=redirect_dir=on,metacopy=on,index=on
fs=$DIR/fs
merged=$fs/merged
lowers=
layer=0
step=0
bold='' plain='' green='' red=''
if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m' green=$'\e[32m' red=$'\e[31m'; fi

title() {
	step=$((step + 1))
	printf '\n%s%2d. %s%s\n' "$bold" "$step" "$*" "$plain"
}
say() { printf '      %s\n' "$*"; }
good() { printf '    %s+%s %s\n' "$green" "$plain" "$*"; }
fail() {
	printf '    %sx %s%s\n' "$red" "$*" "$plain" >&2
	exit 1
}
indent() { sed 's/^/      | /'; }

# quietly WHAT COMMAND... shows the command's output only if it fails, and the time it took.
quietly() {
	local what=$1 t=$SECONDS
	shift
	if ! "$@" >"$DIR/step.log" 2>&1 </dev/null; then
		tail -n 40 "$DIR/step.log" >&2
		fail "$what"
	fi
	good "$what ($((SECONDS - t)) s)"
}

# union LOWERS UPPER WORK mounts with what is shown; kernel_union the same with the kernel's overlayfs.
union() {
	local o="lowerdir=$1,upperdir=$2,workdir=$3${OPTS:+,$OPTS}"
	if [ "$PLYFS" = kernel ]; then
		kernel_union "$@"
	elif [ "$NAME" = plyfs ]; then
		timeout 60 "$PLYFS" mount -o "$o" "$merged" || fail "plyfs could not mount"
	else
		timeout 60 "$PLYFS" -o "$o" "$merged" || fail "$NAME could not mount"
	fi
}
kernel_union() {
	timeout 60 mount -t overlay overlay -o "lowerdir=$1,upperdir=$2,workdir=$3,$kernel_opts" "$merged" ||
		fail "the kernel's overlayfs could not mount: $(dmesg 2>/dev/null | grep overlayfs: | tail -n 1)"
}

# servers lists the processes that serve the union.
servers() {
	local p
	for p in /proc/[0-9]*; do
		[ "$(readlink "$p/exe" 2>/dev/null)" != "$(readlink -f "$PLYFS")" ] || printf '%s\n' "${p#/proc/}"
	done
}

release() {
	local i
	timeout 60 umount "$merged" || fail "could not unmount"
	for ((i = 0; i < 50; i++)); do
		[ -n "$(servers)" ] || return 0
		sleep 0.1
	done
	fail "$NAME still runs 5 s after its mount is gone: process $(servers | paste -sd' ')"
}

# inside SCRIPT runs bash on the union, in a chroot and in mount, process, IPC and host name namespaces of its own.
inside() {
	timeout -k 10 900 unshare --mount --pid --ipc --uts --fork --kill-child bash -ceu '
		hostname plyfs-demo
		mount -t proc proc "$1/proc"
		mount -t tmpfs -o mode=755,size=1m dev "$1/dev"
		for d in null zero full random urandom tty; do
			touch "$1/dev/$d"
			mount --bind "/dev/$d" "$1/dev/$d"
		done
		ln -s /proc/self/fd "$1/dev/fd"
		mkdir "$1/dev/shm"
		mount -t tmpfs -o mode=1777,size=64m shm "$1/dev/shm"
		exec chroot "$1" /usr/bin/env -i HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
			PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin bash -ceu "$2"
	' inside "$merged" "$1"
}

# names DIR lists all names in a tree.
names() { (cd "$1" && find . -mindepth 1 | sort); }

# make_layer WHAT SCRIPT runs SCRIPT on the layers so far and keeps what it changed as the next layer.
make_layer() {
	layer=$((layer + 1))
	mkdir "$fs/layer$layer" "$fs/work$layer"
	chmod 755 "$fs/layer$layer"
	union "$lowers" "$fs/layer$layer" "$fs/work$layer"
	quietly "layer $layer: $1" inside "$2"
	release
	rm -rf "$fs/work$layer"
	lowers=$fs/layer$layer:$lowers
}

prepare() {
	mkdir -p "$merged"
	# Where $TMPDIR itself is a union (in a container), the kernel can't use it as an upper.
	mkdir "$fs/l" "$fs/u" "$fs/w"
	if mount -t overlay overlay -o "lowerdir=$fs/l,upperdir=$fs/u,workdir=$fs/w,$kernel_opts" "$merged" 2>/dev/null; then
		umount "$merged"
		rm -rf "$fs/l" "$fs/u" "$fs/w"
	else
		mount -t tmpfs -o size=4g,mode=755 tmpfs "$fs"
		mkdir -p "$merged"
	fi
}

base_layer() {
	local args=(--variant=minbase)
	title "Make a Debian root file system in layers ($SUITE)"
	case $MIRROR in https:*) args+=(--include=ca-certificates) ;; esac
	if [ -n "${DEMO_CACHE:-}" ]; then
		mkdir -p "$DEMO_CACHE"
		args+=("--cache-dir=$(realpath "$DEMO_CACHE")")
	fi
	layer=1
	lowers=$fs/layer1
	eval "$(apt-config shell http_proxy Acquire::http::Proxy https_proxy Acquire::https::Proxy)"
	[ -z "${http_proxy:-}" ] || export http_proxy
	[ -z "${https_proxy:-}" ] || export https_proxy
	quietly "layer 1: debootstrap, $SUITE minbase" timeout -k 10 1800 debootstrap "${args[@]}" "$SUITE" "$lowers" "$MIRROR"
	cp -L /etc/resolv.conf "$lowers/etc/resolv.conf"
	cp -L /etc/hosts "$lowers/etc/hosts"
	cp "$DIR/apt.conf" "$lowers/etc/apt/apt.conf.d/90host"
}

more_layers() {
	make_layer "apt-get install git python3 nano, and a small web site" '
		apt-get -q update
		apt-get -qy install --no-install-recommends git python3 nano
		apt-get -q clean
		mkdir -p /srv/site/pages/old /srv/site/media
		for i in $(seq 200); do echo "page $i" >/srv/site/pages/$i.html; done
		head -c 8388608 /dev/urandom >/srv/site/media/film
		ln /srv/site/media/film /srv/site/media/film.link
		echo one >/srv/site/config
		echo draft >/srv/site/pages/old/draft'
	make_layer "packages and files deleted (whiteouts)" '
		apt-get -qy purge nano
		rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin
		rm /srv/site/pages/1??.html
		rm -r /srv/site/pages/old && mkdir /srv/site/pages/old && echo new >/srv/site/pages/old/final'
	make_layer "a directory replaced by a file, a file by a directory" '
		rm -r /srv/site/pages && echo moved >/srv/site/pages
		rm /srv/site/config && mkdir /srv/site/config && echo two >/srv/site/config/main'
	make_layer "directories renamed, /usr/share/doc among them" '
		mv /srv/site /srv/www
		mv /usr/share/doc /usr/share/documents
		ln -s documents /usr/share/doc'
	make_layer "owners, modes and attributes changed" '
		useradd -m alice
		chown -R alice:alice /srv/www
		chmod 750 /srv/www/media
		mkdir -m 3775 /srv/www/inbox'
	say "$(du -sh --total "$fs"/layer* | tail -n 1 | cut -f1) in $layer layers"
}

use() {
	title "Mount them with $NAME and work on it, in a chroot in new namespaces"
	mkdir "$fs/upper" "$fs/work"
	chmod 755 "$fs/upper"
	union "$lowers" "$fs/upper" "$fs/work"
	grep " $merged " /proc/self/mountinfo | sed 's/.* - \([^ ]*\) .*/type \1/' | indent
	names "$merged" >"$DIR/lower.names"
	quietly "apt-get update" inside 'apt-get -q update'
	quietly "apt-get install gcc libc6-dev" inside 'apt-get -qy install --no-install-recommends gcc libc6-dev'
	quietly "compile and run a C program" inside '
		cat >/root/hello.c <<-C
			#include <stdio.h>
			int main(void) { puts("Hello from a C program on a union file system"); return 0; }
		C
		gcc -O2 -Wall -o /root/hello /root/hello.c
		/root/hello'
	indent <"$DIR/step.log"
	quietly "dpkg --verify finds every file of every package as it was packed" inside '
		out=$(dpkg --verify); [ -z "$out" ] || { echo "$out"; exit 1; }'
	quietly "git init, add, commit, status" inside '
		cd /srv/www && git config --global user.email a@example.org && git config --global user.name Alice
		git config --global --add safe.directory /srv/www
		git init -q -b main . && git add -A && git commit -qm "The site" && git fsck --strict
		[ -z "$(git status --porcelain)" ] && git log --oneline --stat | head -n 6'
	indent <"$DIR/step.log"
	quietly "python3: SQLite, a thread pool, a mapped file" inside '
		cat >/root/work.py <<-P
			import concurrent.futures, mmap, os, sqlite3
			db = sqlite3.connect("/var/lib/demo.db"); db.execute("pragma journal_mode=wal")
			db.execute("create table t(k integer primary key, v text)")
			db.executemany("insert into t(v) values(?)", [(str(i),) for i in range(20000)]); db.commit()
			def one(i):
			    p = f"/root/file{i}"
			    open(p, "w").write(p); os.rename(p, p + ".done"); return os.stat(p + ".done").st_size
			n = sum(concurrent.futures.ThreadPoolExecutor(8).map(one, range(500)))
			with open("/srv/www/media/film", "r+b") as f, mmap.mmap(f.fileno(), 0) as m: m[4096:4101] = b"plyfs"
			same = open("/srv/www/media/film.link", "rb").read()[4096:4101]
			print("rows", db.execute("select count(*) from t").fetchone()[0], "bytes", n, "through the other link:", same.decode())
		P
		python3 /root/work.py'
	indent <"$DIR/step.log"
	quietly "remove, rename, link what lies in lower layers" inside '
		apt-get -q clean
		mv /usr/share/zoneinfo /usr/share/zones && ln -s zones /usr/share/zoneinfo
		mv /usr/share/documents /usr/share/papers && ln -sfn papers /usr/share/doc
		ln /etc/passwd /etc/passwd.link
		chown -R alice /usr/lib/git-core
		rm -r /var/cache/debconf'
}

# marked NAME counts the files of the upper that bear the overlay's attribute.
marked() { getfattr -Rhm "^trusted\.overlay\.$1\$" "$fs/upper" 2>/dev/null | grep -c '^trusted' || true; }

show_upper() {
	title "Look at the upper: what the work above changed, and nothing else"
	names "$fs/upper" >"$DIR/upper.names"
	comm -12 "$DIR/upper.names" "$DIR/lower.names" >"$DIR/both.names"
	say "$(du -sh "$fs/upper" | cut -f1) of data; the layers below, $(du -sh --total "$fs"/layer* | tail -n 1 | cut -f1), are untouched"
	say "$(wc -l <"$DIR/upper.names") names: $(comm -23 "$DIR/upper.names" "$DIR/lower.names" | wc -l) new, $(wc -l <"$DIR/both.names") also in the layers below"
	say "$(find "$fs/upper" -type c | wc -l) whiteouts, $(marked opaque) opaque directories, $(marked redirect) redirects, $(marked metacopy) files of which only metadata was copied"
	say "copied up or replaced, among others:"
	(cd "$fs/upper" && grep -E '^\./(etc|srv|var)/' "$DIR/both.names" | while read -r f; do
		[ ! -f "$f" ] || stat -c '%8s  %n' "$f"
	done) | sort -rn | head -n 8 | sed 's/\.\//\//' | indent
}

same_tree() {
	local left
	title "Mount the same upper with the kernel's overlayfs and compare"
	quietly "fingerprint of the tree as $NAME serves it" timeout 600 "$DIR/bin/treecmp" save "$DIR/tree" "$merged"
	release
	left=$(find "$fs/work/work" -mindepth 1 2>/dev/null | wc -l)
	[ "$left" = 0 ] || [ "$NAME" != plyfs ] || fail "$left files are left in the work directory"
	good "unmounted; no process, and $left files in the work directory, are left"
	kernel_union "$lowers" "$fs/upper" "$fs/work"
	quietly "the kernel serves the same tree: names, types, modes, owners, times, attributes, links, content" \
		timeout 600 "$DIR/bin/treecmp" check "$DIR/tree" "$merged"
	say "$(cat "$DIR/step.log") names compared"
	quietly "changed there: a deletion, a rename, a chmod, an append" inside '
		[ -z "$(dpkg --verify)" ] && /root/hello >/dev/null
		rm -r /srv/www/config && mv /usr/include /usr/headers && chmod 600 /etc/passwd && echo kernel >>/etc/hosts'
	quietly "fingerprint of that" timeout 600 "$DIR/bin/treecmp" save "$DIR/tree" "$merged"
	umount "$merged"
	union "$lowers" "$fs/upper" "$fs/work"
	quietly "and back: $NAME serves the tree that the kernel left" timeout 600 "$DIR/bin/treecmp" check "$DIR/tree" "$merged"
	say "$(cat "$DIR/step.log") names compared"
	release
}

trap 'exit 130' INT TERM
printf '%sA union file system at work: %s%s\n' "$bold" "$NAME" "$plain"
say "everything is in $DIR and in namespaces of its own; nothing is left behind"
prepare
base_layer
more_layers
use
show_upper
same_tree
printf '\n%sDone in %d s: the tree that %s wrote is the tree that the kernel reads.%s\n' \
	"$green" $((SECONDS - started)) "$NAME" "$plain"
