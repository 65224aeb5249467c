#!/bin/bash
# prepare.sh KERNEL makes the machine that `vm -kernel KERNEL` boots, out of Debian packages, and prints its directory.
#
# KERNEL is uml (user-mode Linux, a process), or 6.1 or 6.12 (Debian's kernels, for qemu). A machine is a directory:
#   kernel    what is booted, an ELF file
#   kind      uml or qemu
#   release   the kernel's version, as uname -r says it
#   root/     what lies over the host's own tree in the machine: modules, and tools that the host lacks
#   versions  the packages it was made of
# It stays as it is until it is removed. zfs modules are kept beside, by versions, since they take minutes to build; the zfs of
# Debian 12 is too old for 6.12, whose machine has none.
#
# On the host it installs what it calls itself. The rest is unpacked and not installed, and zfs comes from Debian's contrib
# through package lists of this script's own: the host's sources are read, never changed.
set -euo pipefail
umask 022
export LC_ALL=C.UTF-8

kernel=${1-}
here=$(dirname "$(readlink -f "$0")")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/plyfs-vm
machine=$cache/$kernel

# What tests call in the machine.
guest_tools=(kmod nfs-kernel-server zfsutils-linux dmsetup thin-provisioning-tools btrfs-progs xfsprogs e2fsprogs)
# What this script, and those that it calls, call.
host_tools=(util-linux kmod xz-utils zstd gcc make libc6-dev flex bison bc)

die() {
	echo "vm: $*" >&2
	exit 1
}
say() { echo "vm: $*" >&2; }

case $kernel in
uml) ;;
6.1 | 6.12) host_tools+=(qemu-system-x86) ;;
*) die "no such kernel: '$kernel'; there are uml, 6.1 and 6.12" ;;
esac

# Whoever changes how it is made gets it made anew.
recipe=$(cat "$here"/{prepare,zfs,vmlinux}.sh | sha256sum | cut -d' ' -f1)
end_if_made() {
	[ "$(cat "$machine/recipe" 2>/dev/null)" = "$recipe" ] || return 0
	echo "$machine"
	exit 0
}
end_if_made
mkdir -p "$cache"
exec 9>"$cache/lock-$kernel"
flock 9
end_if_made # by whoever held the lock
command -v apt-get >/dev/null || die "apt-get not found: the machine is made of Debian packages"
[ "$(dpkg --print-architecture)" = amd64 ] || die "there are machines for amd64 only"
"$here/../ci/deps.sh" "${host_tools[@]}" >&2

find "$cache" -maxdepth 1 -name "new-$kernel.*" -exec rm -rf {} + # of a run that was killed; this one holds the lock
new=$(mktemp -d "$cache/new-$kernel.XXXXXX")
trap 'rm -rf "$new"' EXIT
trap 'exit 130' INT TERM
log=$new/log

# run COMMAND... shows the output only of what fails.
run() {
	"$@" >"$log" 2>&1 </dev/null || {
		tail -n 40 "$log" >&2
		die "failed: $*"
	}
}

apt=(-qq -o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$cache/apt/sources"
	-o "Dir::State::Lists=$cache/apt/lists" -o "Dir::Cache=$cache/apt/cache" -o "Dir::Cache::archives=$new/debs"
	-o APT::Sandbox::User=root -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)

# package_lists fetches the lists of the host's Debian sources, with contrib.
package_lists() {
	say "fetching package lists"
	rm -rf "$cache/apt"
	mkdir -p "$cache"/apt/{sources,lists/partial,cache}
	local f
	for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
		grep -qs '/debian' "$f" || continue
		sed -E '/^(Components:|deb )/{/contrib/!s/$/ contrib/}' "$f" >"$cache/apt/sources/$(basename "$f")"
	done
	run apt-get "${apt[@]}" update
}

# version PACKAGE is the version that would be installed.
version() { apt-cache "${apt[@]}" policy "$1" | sed -n 's/^  Candidate: //p'; }

# fetch PACKAGE[=VERSION] DIR unpacks a package.
fetch() {
	rm -rf "$new/debs"
	mkdir -p "$new/debs"
	(cd "$new/debs" && run apt-get "${apt[@]}" download "$1")
	unpack "$2"
}

# unpack DIR unpacks all packages in debs/ so that the tree may lie over one in which /bin, /lib and /sbin are symlinks.
unpack() {
	local d deb
	mkdir -p "$1/usr"
	for d in bin lib lib64 sbin; do
		mkdir -p "$1/usr/$d"
		[ -L "$1/$d" ] || ln -s "usr/$d" "$1/$d"
	done
	for deb in "$new"/debs/*.deb; do
		dpkg-deb --fsys-tarfile "$deb" | tar -C "$1" --keep-directory-symlink -x
		basename "$deb" >>"$new/m/versions"
	done
}

# tools unpacks what tests call and the host lacks, with what that needs.
tools() {
	say "fetching tools"
	rm -rf "$new/debs"
	mkdir -p "$new/debs/partial"
	run apt-get "${apt[@]}" -y --no-install-recommends --download-only install "${guest_tools[@]}"
	if compgen -G "$new/debs/*.deb" >/dev/null; then unpack "$new/m/root"; fi
}

# kernel_package is the name of the newest package of the kernel.
kernel_package() {
	local meta=linux-image-amd64
	[ "$kernel" = 6.1 ] || meta=linux-image-$kernel-amd64
	apt-cache "${apt[@]}" depends "$meta" | sed -n "s/.*Depends: \(linux-image-${kernel}[.][0-9].*\)/\1/p" | head -n 1
}

# unpack_kernel unpacks the kernel and its modules.
unpack_kernel() {
	local x=$new/x package
	if [ "$kernel" = uml ]; then
		say "fetching user-mode Linux $(version user-mode-linux)"
		fetch user-mode-linux "$x"
		release=$(ls "$x/usr/lib/uml/modules")
		mv "$x/usr/lib/uml/modules/$release" "$new/m/modules"
		mv "$x/usr/bin/linux.uml" "$new/m/kernel"
		zcat "$x/usr/share/doc/user-mode-linux/config.gz" >"$new/m/config"
	else
		package=$(kernel_package)
		[ -n "$package" ] || die "this Debian has no Linux $kernel; take another KERNEL"
		say "fetching $package $(version "$package")"
		fetch "$package" "$x"
		release=${package#linux-image-}
		mv "$x/usr/lib/modules/$release" "$new/m/modules"
		"$here/vmlinux.sh" "$x/boot/vmlinuz-$release" "$new/m/kernel"
		# Drivers of hardware that no virtual machine has are most of the bytes.
		rm -rf "$new"/m/modules/kernel/{sound,drivers/{gpu,media,net/ethernet,net/wireless,infiniband,staging,usb,scsi,iio}}
		find "$new/m/modules" -name '*.ko.xz' -exec xz -d {} +
	fi
	rm -rf "$x"
	echo "$release" >"$new/m/release"
}

# zfs_modules adds zfs, built for the kernel once.
zfs_modules() {
	local v tarball source
	v=$(version zfs-dkms)
	tarball=$cache/zfs-${v//:/.}-$kernel-$release.tar.zst
	if ! [ -s "$tarball" ]; then
		say "building zfs $v for Linux $release: minutes"
		mkdir "$new/zfs"
		fetch zfs-dkms "$new/zfs"
		if [ "$kernel" = uml ]; then
			source=linux-source-${release%.*}
			source=$source=$(apt-cache "${apt[@]}" madison "$source" | awk -v r="$release-" 'index($3, r) == 1 && !n++ { print $3 }')
			[ "${source##*=}" != "" ] || die "no source of Linux $release in the archive, to build zfs; take KERNEL=6.1"
			fetch "$source" "$new/zfs"
		else
			fetch "linux-headers-$release" "$new/zfs"
			# Their common part, and the programs that build with them.
			for source in $(apt-cache "${apt[@]}" depends "linux-headers-$release" | sed -n 's/.*Depends: \(linux-.*\)/\1/p'); do
				case $source in linux-headers-* | linux-kbuild-*) fetch "$source" "$new/zfs" ;; esac
			done
		fi
		run "$here/zfs.sh" "$new/zfs" "$new/m" "$tarball"
		rm -rf "$new/zfs"
	fi
	mkdir -p "$new/m/modules/extra"
	tar -C "$new/m/modules/extra" --zstd -xf "$tarball"
	echo "zfs-dkms $v" >>"$new/m/versions"
}

mkdir "$new/m"
(
	flock 8 # another kernel's machine may be made at the same time
	if [ ! -d "$cache/apt/lists" ] || [ "$(version zfs-dkms)" = "" ]; then package_lists; fi
) 8>"$cache/lock-apt"
[ -n "$(version zfs-dkms)" ] || die "zfs-dkms not found, with contrib, in the sources of /etc/apt"
unpack_kernel
tools
if [ "$kernel" = 6.12 ]; then say "zfs of this Debian does not build for Linux $release: this machine has none"; else zfs_modules; fi
mkdir -p "$new/m/root/usr/lib/modules"
mv "$new/m/modules" "$new/m/root/usr/lib/modules/$release"
run depmod -b "$new/m/root" "$release"
if [ "$kernel" = uml ]; then echo uml; else echo qemu; fi >"$new/m/kind"
echo "$recipe" >"$new/m/recipe"
rm -rf "$machine"
mv "$new/m" "$machine"
say "made $machine"
echo "$machine"
