package ovl

import "strings"

// Limits of the formats.
const (
	// MaxRedirect is the longest redirect that the kernel writes (cf. overlayfs dir.c redirect_max).
	MaxRedirect = 256
	// XWhiteoutsFlag is the value of the opaque attribute of a directory that holds whiteouts in attribute form.
	XWhiteoutsFlag = 'x'
	opaqueFlag     = 'y'
)

// Names are the attribute names of one namespace. Obtain them with Trusted or User; they are read-only.
type Names struct {
	Opaque   string
	Redirect string
	Metacopy string
	Origin   string
	Impure   string
	Nlink    string
	Upper    string
	Whiteout string
	// Unsynced marks an upper file whose data may not have reached the disk; its value is an UnsyncedMark. It lies in
	// the kernel's private namespace, so the kernel's overlayfs hides it.
	Unsynced string
	// Special marks an empty regular file that stands for a 0:0 character device which an application made: a real
	// one would be a whiteout. Its value is an OverrideStat.
	Special string
	// Specials marks a directory that holds such files, so that others need no look at each empty file.
	Specials string
	// Literal marks a regular file whose name begins like an AUFS whiteout but which an application made.
	Literal string
}

func namesOf(prefix string) *Names {
	p := prefix + "overlay."
	return &Names{
		Opaque:   p + "opaque",
		Redirect: p + "redirect",
		Metacopy: p + "metacopy",
		Origin:   p + "origin",
		Impure:   p + "impure",
		Nlink:    p + "nlink",
		Upper:    p + "upper",
		Whiteout: p + "whiteout",
		Unsynced: p + "plyfs.unsynced",
		Special:  p + "plyfs.special",
		Specials: p + "plyfs.specials",
		Literal:  p + "plyfs.literal",
	}
}

var (
	trusted = namesOf("trusted.")
	user    = namesOf("user.")
)

// Trusted returns the names that need CAP_SYS_ADMIN in the initial user namespace.
func Trusted() *Names { return trusted }

// User returns the names that a user namespace's root may write (the kernel's userxattr).
func User() *Names { return user }

// FuseOverlayfsOpaque is the opaque attribute of fuse-overlayfs; FuseOverlayfsOrigin is its origin.
const (
	FuseOverlayfsOpaque = "user.fuseoverlayfs.opaque"
	FuseOverlayfsOrigin = "user.fuseoverlayfs.origin"
)

// IsOpaque says whether the value of an opaque attribute makes its directory hide the layers below it.
func IsOpaque(value []byte) bool { return len(value) > 0 && value[0] == opaqueFlag }

// HasXWhiteouts says whether the value of an opaque attribute announces whiteouts in attribute form.
func HasXWhiteouts(value []byte) bool { return len(value) == 1 && value[0] == XWhiteoutsFlag }

// OpaqueValue is what is written to make a directory opaque.
func OpaqueValue() []byte { return []byte{opaqueFlag} }

// The AUFS and OCI form.
const (
	aufsPrefix = ".wh."
	// AUFSOpaque is the sentinel file that makes its directory opaque.
	AUFSOpaque = ".wh..wh..opq"
	// aufsMeta begins the names of AUFS's own bookkeeping (.wh..wh.plnk and others), which stand for no victim.
	aufsMeta = ".wh..wh."
)

// AUFSWhiteout is the name of the file that deletes name from the layers below.
func AUFSWhiteout(name string) string { return aufsPrefix + name }

// IsAUFSName says whether a directory entry's name is one of the AUFS form: a whiteout, a sentinel or bookkeeping.
func IsAUFSName(name string) bool { return strings.HasPrefix(name, aufsPrefix) }

// AUFSVictim returns the name that an AUFS whiteout deletes; ok is false for the sentinel and for bookkeeping.
func AUFSVictim(name string) (victim string, ok bool) {
	if !IsAUFSName(name) || strings.HasPrefix(name, aufsMeta) || len(name) == len(aufsPrefix) {
		return "", false
	}
	return name[len(aufsPrefix):], true
}

// AUFSLiteralVictim returns the name, of the AUFS form itself, that a file called name deletes where such names may be an application's.
func AUFSLiteralVictim(name string) (victim string, ok bool) {
	if !strings.HasPrefix(name, aufsMeta) || name == AUFSOpaque {
		return "", false
	}
	return name[len(aufsPrefix):], true
}

// IsAUFSBookkeeping says whether a directory of that name is AUFS's own.
func IsAUFSBookkeeping(name string) bool { return strings.HasPrefix(name, aufsMeta) }
