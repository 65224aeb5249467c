#!/bin/bash
# zfs.sh TREE MACHINE TARBALL builds the modules of zfs without dkms, for a kernel that need not be the running one.
#
# TREE holds the unpacked packages zfs-dkms and either linux-headers and linux-kbuild, or linux-source; MACHINE the kernel, its
# release and, of user-mode Linux, its config. What is built is packed into TARBALL.
set -euo pipefail

tree=$1 machine=$2 tarball=$3
here=$(dirname "$(readlink -f "$0")")
release=$(cat "$machine/release")
jobs=-j$(nproc)

# uml_tree makes of the source what a headers package would hold. Debian has none of user-mode Linux.
uml_tree() {
	source=$tree/src
	build=$source
	mkdir "$source"
	tar -C "$source" --strip-components=1 -xf "$tree"/usr/src/linux-source-*.tar.xz --exclude='*/Documentation/*/*' \
		--exclude='*/drivers/*.[chS]' --exclude='*/sound/*.[ch]' --exclude='*/fs/*.[ch]' --exclude='*/net/*/*.[ch]' \
		--exclude='*/tools/testing' --exclude='*.dts*' --wildcards
	cp "$machine/config" "$source/.config"
	make -C "$source" -s ARCH=um olddefconfig
	make -C "$source" -s "$jobs" ARCH=um modules_prepare
	# The symbols that modules may use are read back out of the kernel.
	(cd "$here" && CGO_ENABLED=0 go run . symvers "$machine/kernel") >"$source/Module.symvers"
	export ARCH=um ARCH_UM=ARCH=um
	# For C, user-mode Linux renames setjmp; for assembly it does not.
	flags=("KAFLAGS=-Dsetjmp=kernel_setjmp -Dlongjmp=kernel_longjmp")
}

# headers_tree makes the packages' links lead to each other where they were unpacked.
headers_tree() {
	build=$tree/usr/src/linux-headers-$release
	source=$tree/usr/src/linux-headers-${release%-amd64}-common
	sed -i "s|/usr/src/|$tree/usr/src/|g; s|/usr/lib/linux-kbuild|$tree/usr/lib/linux-kbuild|g" "$build/Makefile"
	local l
	for l in "$build"/scripts "$build"/tools "$source"/scripts "$source"/tools; do
		if [ -L "$l" ]; then ln -sfn "$tree/usr/lib/$(basename "$(dirname "$(readlink "$l")")")/$(basename "$l")" "$l"; fi
	done
}

flags=()
if [ -e "$machine/config" ]; then uml_tree; else headers_tree; fi
cd "$tree"/usr/src/zfs-*
./configure -q --with-config=kernel --with-linux="$source" --with-linux-obj="$build"
if [ -e "$machine/config" ]; then
	# Its sources are those of x86_64, but its configuration does not say so.
	# shellcheck disable=SC2016  # variables of make
	sed -i 's/\$(CONFIG_X86_64)/y/; s/\$(CONFIG_X86)/y/' module/{icp,zcommon,zfs}/Makefile
fi
make -s "$jobs" KCFLAGS=-g0 "${flags[@]}"
mkdir "$tree/out"
find module -name '*.ko' -exec cp -t "$tree/out" {} +
strip --strip-debug "$tree"/out/*.ko
tar -C "$tree/out" -c . | zstd -q -19 -T0 -o "$tarball.new" -f
mv "$tarball.new" "$tarball"
