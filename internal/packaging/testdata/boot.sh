#!/bin/sh
# boot.sh DIR makes a container of systemd, in namespaces and a cgroup that the caller made: on a view of this machine's own system that
# is written to memory, with devices, /proc and /sys as container engines give them. DIR is an empty directory. It does not return.
set -eu
umask 022

dir=$1
root=$dir/root
mount --make-rprivate /
mount -t tmpfs tmpfs "$dir"
mkdir "$dir/lower" "$dir/upper" "$dir/work" "$root"
mount --bind / "$dir/lower"
mount -t overlay overlay -o "lowerdir=$dir/lower,upperdir=$dir/upper,workdir=$dir/work" "$root"

# systemd applies the system's sysctl settings where it can. A whole /proc has to be mounted somewhere, else no user namespace may mount one.
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"

mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for name in null zero full random urandom tty fuse; do
	touch "$root/dev/$name"
	mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mkdir "$root/run/proc"
mount -t proc proc "$root/run/proc"

# What this machine's engines hold is none of the container's, and the kernel takes no upper on an overlay.
for name in docker containerd containers plyfs; do
	mkdir -p "$root/var/lib/$name"
	mount -t tmpfs tmpfs "$root/var/lib/$name"
done
# Nor does it start what this machine's administrator wants.
rm -rf "$root"/etc/systemd/system/*.wants "$root/etc/docker" "$root/etc/plyfs"

cd "$root"
mkdir -p mnt/old
pivot_root . mnt/old
umount -l /mnt/old
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=oci \
	/lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=no
