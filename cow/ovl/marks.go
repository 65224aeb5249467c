package ovl

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// UnsyncedMark is what an upper file carries from copy-up until its data is known to be on disk. After a crash of the
// machine (another boot) such a file falls back to the content of its lower.
type UnsyncedMark struct {
	// Boot is the boot id of the kernel under which the file was copied.
	Boot string
	// Lower is the place of the lower file, relative to its layer's root.
	Lower string
}

// Encode returns the attribute's value.
func (m UnsyncedMark) Encode() []byte { return []byte(m.Boot + "\x00" + m.Lower) }

// ParseUnsynced decodes an unsynced mark.
func ParseUnsynced(b []byte) (UnsyncedMark, error) {
	boot, lower, ok := bytes.Cut(b, []byte{0})
	if !ok || len(boot) == 0 || len(lower) == 0 {
		return UnsyncedMark{}, fmt.Errorf("unsynced mark of %d bytes is malformed", len(b))
	}
	return UnsyncedMark{Boot: string(boot), Lower: string(lower)}, nil
}

// NlinkDelta is the value of an nlink attribute: the union's link count relative to that of the upper or lower inode
// (cf. overlayfs inode.c ovl_set_nlink_common).
type NlinkDelta struct {
	OfLower bool
	Delta   int
}

// Encode returns the attribute's value.
func (d NlinkDelta) Encode() []byte {
	base := byte('U')
	if d.OfLower {
		base = 'L'
	}
	return fmt.Appendf([]byte{base}, "%+d", d.Delta)
}

// ParseNlink decodes an nlink attribute. Numbers beyond 32 bits are refused, as the kernel does (cf. overlayfs inode.c
// ovl_get_nlink): the sum with a link count then fits an int.
func ParseNlink(b []byte) (NlinkDelta, error) {
	if len(b) < 3 || (b[0] != 'U' && b[0] != 'L') || (b[1] != '+' && b[1] != '-') {
		return NlinkDelta{}, fmt.Errorf("link count %q is malformed", b)
	}
	n, err := strconv.ParseInt(string(b[1:]), 10, 32)
	if err != nil {
		return NlinkDelta{}, fmt.Errorf("link count %q: %w", b, err)
	}
	return NlinkDelta{OfLower: b[0] == 'L', Delta: int(n)}, nil
}

// OverrideNames are the attributes in which a store keeps owner and mode, in the order in which they are looked for.
func OverrideNames() [3]string {
	return [3]string{
		"security.fuseoverlayfs.override_stat",
		"user.containers.override_stat",
		"user.fuseoverlayfs.override_stat",
	}
}

// OverrideStat is owner, mode and type kept in an attribute.
type OverrideStat struct {
	UID, GID uint32
	// Mode is the permission bits, and the type bits when the attribute names a type (HasType).
	Mode    uint32
	HasType bool
	Rdev    uint64
}

// overrideTypes maps the format's words to mode bits; devices are handled apart.
func overrideType(word string) (uint32, bool) {
	switch word {
	case "dir":
		return unix.S_IFDIR, true
	case "file":
		return unix.S_IFREG, true
	case "symlink":
		return unix.S_IFLNK, true
	case "pipe":
		return unix.S_IFIFO, true
	case "socket":
		return unix.S_IFSOCK, true
	}
	return 0, false
}

// Encode returns the attribute's value, uid:gid:mode:type.
func (o OverrideStat) Encode() []byte {
	s := fmt.Sprintf("%d:%d:%o", o.UID, o.GID, o.Mode&0o7777)
	switch o.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		s += ":dir"
	case unix.S_IFREG:
		s += ":file"
	case unix.S_IFLNK:
		s += ":symlink"
	case unix.S_IFIFO:
		s += ":pipe"
	case unix.S_IFSOCK:
		s += ":socket"
	case unix.S_IFBLK:
		s += fmt.Sprintf(":block-%d-%d", unix.Major(o.Rdev), unix.Minor(o.Rdev))
	case unix.S_IFCHR:
		s += fmt.Sprintf(":char-%d-%d", unix.Major(o.Rdev), unix.Minor(o.Rdev))
	}
	return []byte(s)
}

// ParseOverride decodes uid:gid:mode[:type]; unknown trailing -x parts of the type are tolerated.
func ParseOverride(b []byte) (OverrideStat, error) {
	bad := func() (OverrideStat, error) {
		return OverrideStat{}, fmt.Errorf("ownership attribute %q is malformed", b)
	}
	parts := strings.SplitN(string(b), ":", 4)
	if len(parts) < 3 {
		return bad()
	}
	uid, err1 := parseOwner(parts[0])
	gid, err2 := parseOwner(parts[1])
	mode, err3 := strconv.ParseUint(parts[2], 8, 32)
	if err1 != nil || err2 != nil || err3 != nil {
		return bad()
	}
	o := OverrideStat{UID: uid, GID: gid, Mode: uint32(mode) & 0o7777}
	if len(parts) == 3 {
		return o, nil
	}
	words := strings.Split(parts[3], "-")
	o.HasType = true
	if words[0] == "block" || words[0] == "char" {
		if len(words) < 3 {
			return bad()
		}
		major, err1 := strconv.ParseUint(words[1], 10, 32)
		minor, err2 := strconv.ParseUint(words[2], 10, 32)
		if err1 != nil || err2 != nil {
			return bad()
		}
		o.Rdev = unix.Mkdev(uint32(major), uint32(minor))
		o.Mode |= unix.S_IFBLK
		if words[0] == "char" {
			o.Mode = o.Mode&^unix.S_IFMT | unix.S_IFCHR
		}
		return o, nil
	}
	t, ok := overrideType(words[0])
	if !ok {
		return bad()
	}
	o.Mode |= t
	return o, nil
}

// parseOwner decodes an owner. fuse-overlayfs writes -1 for the one that a chown was to leave alone, and shows it as nobody.
func parseOwner(text string) (uint32, error) {
	if text == "-1" {
		return 65534, nil
	}
	id, err := strconv.ParseUint(text, 10, 32)
	return uint32(id), err
}

// MetacopyValue is what is written for a metadata-only copy without a verity digest: the kernel's empty value.
func MetacopyValue() []byte { return nil }
