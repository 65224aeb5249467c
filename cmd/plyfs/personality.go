package main

import (
	"path/filepath"

	"plyfs/fs/mountopt"
)

// personality is how the program reads a command line that mounts.
type personality struct {
	// name begins every message; command is what to type before --help.
	name, command string

	style mountopt.Style
	// lenient reports unknown words and goes on; else they are fatal.
	lenient bool
	// subtype is what follows "fuse." in mountinfo, and the source there if none is given.
	subtype string
	usage   string
}

const (
	nameFuseOverlayfs = "fuse-overlayfs"
	namePlyfs         = "plyfs"
)

// personalityOf returns the personality for argv[0]; ok is false for plyfs itself, which has subcommands.
func personalityOf(argv0 string) (p personality, ok bool) {
	switch name := filepath.Base(argv0); name {
	case nameFuseOverlayfs:
		return personality{
			name: name, command: name, style: mountopt.StyleFUSE, lenient: true, subtype: nameFuseOverlayfs,
			usage: name + " [-f] [-d] [-o OPTION[,OPTION]...]... MOUNTPOINT",
		}, true
	case "mount.plyfs", "mount.fuse.plyfs", "mount.fuse3.plyfs":
		return personality{
			name: name, command: name, style: mountopt.StyleHelper, subtype: namePlyfs,
			usage: name + " SPEC MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPTION[,OPTION]...] [-t TYPE]",
		}, true
	}
	return personality{}, false
}

// mountPersonality is that of plyfs mount.
func mountPersonality() personality {
	return personality{
		name: namePlyfs, command: "plyfs mount", style: mountopt.StyleFUSE, subtype: namePlyfs,
		usage: "plyfs mount [-f] [-d] [-o OPTION[,OPTION]...]... [SOURCE] MOUNTPOINT",
	}
}
