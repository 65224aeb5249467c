package server

import (
	"path/filepath"

	"plyfs/fs/mountopt"
)

// Personality is how the program reads a command line that mounts.
type Personality struct {
	// name begins every message; command is what to type before --help.
	name, command string

	style mountopt.Style
	// lenient reports unknown words and goes on; else they are fatal.
	lenient bool
	// subtype is what follows "fuse." in mountinfo, and the source there if none is given.
	subtype string
	usage   string
}

// The names of programs.
const (
	NameFuseOverlayfs = "fuse-overlayfs"
	NamePlyfs         = "plyfs"
	// NameMount is the program that only mounts.
	NameMount = "plyfs-mount"
)

// PersonalityOf returns the personality for argv[0]; ok is false for plyfs itself, which has subcommands.
func PersonalityOf(argv0 string) (p Personality, ok bool) {
	switch name := filepath.Base(argv0); name {
	case NameFuseOverlayfs:
		return Personality{
			name: name, command: name, style: mountopt.StyleFUSE, lenient: true, subtype: NameFuseOverlayfs,
			usage: name + " [-f] [-d] [-o OPTION[,OPTION]...]... MOUNTPOINT",
		}, true
	case "mount.plyfs", "mount.fuse.plyfs", "mount.fuse3.plyfs":
		return Personality{
			name: name, command: name, style: mountopt.StyleHelper, subtype: NamePlyfs,
			usage: name + " SPEC MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPTION[,OPTION]...] [-t TYPE]",
		}, true
	}
	return Personality{}, false
}

// MountPersonality is that of plyfs mount.
func MountPersonality() Personality {
	return Personality{
		name: NamePlyfs, command: "plyfs mount", style: mountopt.StyleFUSE, subtype: NamePlyfs,
		usage: "plyfs mount [-f] [-d] [-o OPTION[,OPTION]...]... [SOURCE] MOUNTPOINT",
	}
}

// Name begins every message of the program under this personality.
func (p Personality) Name() string { return p.name }
