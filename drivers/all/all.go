// Package all lists the graph drivers of plyfs in the order in which automatic choice prefers them.
//
// plyfs comes first: it is the one that works for everyone, as root, as a user, nested in another union, on any file
// system, with quotas. Where the kernel's own means are at hand, they are faster, and the reports of Probe say so. vfs
// comes last, because it works everywhere and is always the worst. devicemapper wants a pool that someone prepared, and is
// never chosen unasked.
package all

import (
	"context"
	"os"

	"plyfs/drivers"
	"plyfs/drivers/btrfs"
	"plyfs/drivers/devicemapper"
	"plyfs/drivers/overlay2"
	"plyfs/drivers/plyfs"
	"plyfs/drivers/vfs"
	"plyfs/drivers/zfs"
)

// Registry returns all drivers, those known by name only at the end.
func Registry() *drivers.Registry {
	return drivers.NewRegistry(
		preferred(plyfs.Factory()),
		overlay2.Factory(),
		btrfs.Factory(),
		zfs.Factory(),
		asked(devicemapper.Factory()),
		vfs.Factory(),
		known("fuse-overlayfs",
			"plyfs in another place: the mount program that containers/storage and dockerd call by this name",
			"it is a program, not a driver of its own, and plyfs takes its place",
			"use the driver plyfs, which reads the layers that fuse-overlayfs wrote"),
		known("native", "containerd's snapshotter of full copies",
			"containerd's native snapshotter is what is called vfs here",
			"use vfs, or better plyfs or overlay2"),
		known("aufs", "the union that was never merged into Linux",
			"it is no part of Linux, distributions ship it no more, and docker removed the driver in version 24",
			"use plyfs or overlay2, and take over the layers with plyfs layer import"),
		known("overlay", "docker's first driver for overlayfs, with one lower directory and hard links",
			"it used up the inodes of the file system, and docker removed it in version 24",
			"use overlay2, and take over the layers with plyfs layer import"),
		known("windowsfilter", "layers of Windows containers",
			"its layers are NTFS trees with registry hives, which only Windows can use",
			"build the image for linux, and use plyfs or overlay2"),
	)
}

// known is a driver that cannot be had.
func known(name, summary, why, todo string) drivers.Factory {
	return drivers.Factory{
		Name: name, Summary: summary,
		Probe: func(context.Context, drivers.Options) drivers.Report {
			return drivers.Report{Driver: name, Why: why, Todo: todo}
		},
	}
}

// preferred adds to a driver's report what is faster than it, where that can be had.
func preferred(f drivers.Factory) drivers.Factory {
	probe := f.Probe
	f.Probe = func(ctx context.Context, o drivers.Options) drivers.Report {
		r := probe(ctx, o)
		if r.Usable && os.Geteuid() == 0 && !drivers.UserNamespace().Nested {
			r.Why += "; for root of the machine overlay2 is faster, who can do without quotas on any file system and without " +
				"renaming directories of an image (--driver overlay2)"
		}
		return r
	}
	return f
}

// asked has automatic choice pass over a driver.
func asked(f drivers.Factory) drivers.Factory {
	probe := f.Probe
	f.Probe = func(ctx context.Context, o drivers.Options) drivers.Report {
		r := probe(ctx, o)
		r.Passed = true
		if r.Usable {
			r.Why += "; it is used only if it is asked for (--driver " + f.Name + ")"
		}
		return r
	}
	return f
}
