package ovl

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"plyfs/internal/sys"
)

const (
	fhVersion    = 0
	fhMagic      = 0xfb
	fhHeader     = 21
	fhBigEndian  = 1 << 0
	fhAnyEndian  = 1 << 1
	fhPathUpper  = 1 << 2
	fhKnownFlags = fhBigEndian | fhAnyEndian | fhPathUpper
)

// Origin identifies a lower inode across copy-up: struct ovl_fb of overlayfs.h.
type Origin struct {
	UUID [16]byte
	sys.FileHandle
}

// Encode returns the attribute's value.
func (o Origin) Encode() []byte {
	b := make([]byte, fhHeader, fhHeader+len(o.Bytes))
	b[0], b[1], b[2], b[4] = fhVersion, fhMagic, byte(fhHeader+len(o.Bytes)), byte(o.Type)
	if nativeBigEndian() {
		b[3] = fhBigEndian
	}
	copy(b[5:], o.UUID[:])
	return append(b, o.Bytes...)
}

// Fits says whether the handle can be written in the format: the kernel keeps type and total length in a byte each.
func (o Origin) Fits() bool {
	return o.Type >= 0 && o.Type < 255 && fhHeader+len(o.Bytes) <= 255 && len(o.Bytes) > 0
}

// IndexName is the name of the hard-link index entry of the inode (cf. namei.c ovl_get_index_name_fh).
func (o Origin) IndexName() string { return hex.EncodeToString(o.Encode()) }

// ErrNoOrigin says that an origin attribute is there but names no inode: the kernel writes an empty one where the lower
// file system has no handles.
var ErrNoOrigin = errors.New("origin unknown")

// ParseOrigin decodes an origin attribute (cf. namei.c ovl_check_fb_len and ovl_get_fh).
func ParseOrigin(b []byte) (Origin, error) {
	if len(b) == 0 {
		return Origin{}, ErrNoOrigin
	}
	if len(b) < fhHeader || int(b[2]) != len(b) || b[1] != fhMagic {
		return Origin{}, fmt.Errorf("origin of %d bytes is malformed", len(b))
	}
	if b[0] > fhVersion || b[3]&^fhKnownFlags != 0 {
		return Origin{}, fmt.Errorf("origin has version %d, flags %#x: %w", b[0], b[3], ErrNoOrigin)
	}
	if b[3]&fhAnyEndian == 0 && b[3]&fhBigEndian != 0 != nativeBigEndian() {
		return Origin{}, fmt.Errorf("origin of the other byte order: %w", ErrNoOrigin)
	}
	o := Origin{FileHandle: sys.FileHandle{Type: int32(b[4]), Bytes: append([]byte(nil), b[fhHeader:]...)}}
	copy(o.UUID[:], b[5:])
	return o, nil
}

func nativeBigEndian() bool {
	return binary.NativeEndian.Uint16([]byte{0, 1}) == 1
}

// Handle types of the file systems that hold layers, cf. exportfs.h enum fid_type.
const (
	fidIno32    = 0x01 // also tmpfs, with three words
	fidXFS64    = 0x81
	fidBtrfs    = 0x4d
	fidXFS64Par = 0x82
)

// zfsTag begins what stands for the UUID of a dataset of zfs.
const zfsTag = "plyfszfs"

// ZFS stands for the UUID that the datasets of zfs do not have, made of fsid, by which statfs(2) tells them apart. It also says how their
// handles are read: they have the type and length of tmpfs's.
func ZFS(fsid uint64) (uuid [16]byte) {
	copy(uuid[:], zfsTag)
	binary.LittleEndian.PutUint64(uuid[len(zfsTag):], fsid)
	return uuid
}

// fsid is what the UUID was made of, if it is one of ZFS.
func (o Origin) fsid() uint64 { return binary.LittleEndian.Uint64(o.UUID[len(zfsTag):]) }

// NFS stands for the UUID that NFS does not have, and says how its clients' handles are read. All servers have the same: a handle has its
// server's in it, which is random enough.
func NFS() (uuid [16]byte) {
	copy(uuid[:], "plyfsnfs")
	return uuid
}

// Subvolume reads, out of a handle of btrfs, in which of its subvolumes, which have one UUID, the inode is; 0 for other file systems
// (cf. btrfs/export.h struct btrfs_fid).
func (o Origin) Subvolume() uint64 {
	if o.Type != fidBtrfs || len(o.Bytes) < 16 {
		return 0
	}
	return binary.NativeEndian.Uint64(o.Bytes[8:])
}

// Inode reads the inode number out of a handle of a known file system; ok is false for others. The caller checks once
// per layer, on an inode whose number it knows, that the layer's file system encodes as assumed.
func (o Origin) Inode() (ino uint64, ok bool) {
	b := o.Bytes
	switch {
	case o.UUID == ZFS(o.fsid()): // length, number of six bytes, generation of four (cf. openzfs zfs_vfsops.c zfs_fid)
		if o.Type == fidIno32 && len(b) == 12 && binary.NativeEndian.Uint16(b) == 10 {
			return binary.LittleEndian.Uint64(b[2:]) & (1<<48 - 1), true
		}
		return 0, false
	case o.UUID == NFS(): // number, high word first, file type, the server's handle (cf. fs/nfs/export.c nfs_encode_fh)
		if len(b) > 12 && len(b) == 4*int(o.Type) {
			return uint64(binary.NativeEndian.Uint32(b))<<32 | uint64(binary.NativeEndian.Uint32(b[4:])), true
		}
		return 0, false
	case o.Type == fidIno32 && len(b) == 12: // tmpfs: generation, low, high
		return uint64(binary.NativeEndian.Uint32(b[4:])) | uint64(binary.NativeEndian.Uint32(b[8:]))<<32, true
	case o.Type == fidIno32 && len(b) >= 8:
		return uint64(binary.NativeEndian.Uint32(b)), true
	case (o.Type == fidXFS64 || o.Type == fidXFS64Par || o.Type == fidBtrfs) && len(b) >= 8:
		return binary.NativeEndian.Uint64(b), true
	}
	return 0, false
}
