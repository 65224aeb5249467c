#!/bin/bash
# vmlinux.sh BZIMAGE OUT takes the ELF kernel out of a bzImage, so that qemu boots it at once: emulated, the image's own
# decompression takes as long as all the rest. cf. Linux Documentation/arch/x86/boot.rst for the offsets.
set -euo pipefail

image=$1 out=$2

# number OFFSET SIZE reads a little-endian number.
number() { od -An "-tu$2" -j "$1" -N "$2" "$image" | tr -d ' '; }

sectors=$(number 497 1)
[ "$sectors" != 0 ] || sectors=4
start=$(((sectors + 1) * 512 + $(number 584 4)))
length=$(number 588 4)
case $(od -An -tx1 -j "$start" -N 4 "$image" | tr -d ' ') in
fd377a58) unpack=(xz -dc --single-stream) ;;
28b52ffd) unpack=(zstd -dcq) ;;
1f8b*) unpack=(gzip -dc) ;;
*) echo "vmlinux.sh: $image: unknown compression" >&2 && exit 1 ;;
esac
# The last four bytes are the size of what is unpacked.
tail -c "+$((start + 1))" "$image" | head -c "$((length - 4))" | "${unpack[@]}" >"$out" || true
if [ "$(head -c 4 "$out" | od -An -tx1 | tr -d ' ')" != 7f454c46 ]; then
	echo "vmlinux.sh: $image: no ELF file in it" >&2
	exit 1
fi
