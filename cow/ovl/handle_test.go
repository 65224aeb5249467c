package ovl_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// uuidHex is the file system identity that the vectors share.
const uuidHex = "00112233445566778899aabbccddeeff"

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// byteOrders are the flags, in hex, of handles made on this kind of machine and on the other.
func byteOrders() (native, foreign string) {
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		return "01", "00"
	}
	return "00", "01"
}

// Values as struct ovl_fb lays them out: version, magic, length, flags, type, 16 bytes of UUID, the handle.
func TestParseOrigin(t *testing.T) {
	native, _ := byteOrders()
	for _, c := range []struct {
		name, hex string
		typ       int32
		handle    string
	}{
		{"ext4", "00 fb 1d" + native + "01" + uuidHex + "0c00000078563412", 1, "0c00000078563412"},
		{"xfs", "00 fb 21" + native + "81" + uuidHex + "800000000000000007000000", 0x81, "800000000000000007000000"},
		{"no handle", "00 fb 15" + native + "01" + uuidHex, 1, ""},
		{"upper", "00 fb 1d 06 01" + uuidHex + "0c00000078563412", 1, "0c00000078563412"},
		{"any byte order", "00 fb 16 02 f8" + uuidHex + "ff", 0xf8, "ff"},
		{"any byte order, made on a big-endian machine", "00 fb 16 03 f8" + uuidHex + "ff", 0xf8, "ff"},
	} {
		o, err := ovl.ParseOrigin(unhex(t, c.hex))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := hex.EncodeToString(o.UUID[:]); got != uuidHex || o.Type != c.typ || hex.EncodeToString(o.Bytes) != c.handle {
			t.Errorf("%s: uuid %s, type %#x, handle %x", c.name, got, o.Type, o.Bytes)
		}
	}
}

// A dataset of zfs has handles of tmpfs's type and length, and no UUID.
func TestInodeOfZFS(t *testing.T) {
	handle := sys.FileHandle{Type: 1, Bytes: unhex(t, "0a00785634120000abcdef01")}
	o, err := ovl.ParseOrigin(ovl.Origin{UUID: ovl.ZFS(0xfedcba9876543210), FileHandle: handle}.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if ino, ok := o.Inode(); !ok || ino != 0x12345678 {
		t.Errorf("inode %#x, %v", ino, ok)
	}
	o.Bytes = o.Bytes[:8]
	if ino, ok := o.Inode(); ok {
		t.Errorf("a handle that is too short: inode %#x", ino)
	}
	if ovl.ZFS(1) == ovl.ZFS(2) {
		t.Error("two datasets have one identity")
	}
}

func TestParseOriginRefuses(t *testing.T) {
	native, foreign := byteOrders()
	fid := uuidHex + "0c00000078563412"
	for _, c := range []struct {
		name, hex string
		unknown   bool // the value is valid, but says nothing about the origin
	}{
		{"empty", "", true},
		{"newer version", "01 fb 1d" + native + "01" + fid, true},
		{"unknown flag", "00 fb 1d 08 01" + fid, true},
		{"other byte order", "00 fb 1d" + foreign + "01" + fid, true},
		{"one byte", "00", false},
		{"header cut", "00 fb 14" + native + "01" + uuidHex[:30], false},
		{"handle cut", "00 fb 1d" + native + "01" + fid[:len(fid)-2], false},
		{"length short", "00 fb 1c" + native + "01" + fid, false},
		{"length below the header", "00 fb 02" + native + "01" + fid, false},
		{"magic", "00 fc 1d" + native + "01" + fid, false},
		{"magic of a newer version", "01 00 1d" + native + "01" + fid, false},
	} {
		o, err := ovl.ParseOrigin(unhex(t, c.hex))
		if err == nil {
			t.Errorf("%s: parsed as %+v", c.name, o)
		} else if errors.Is(err, ovl.ErrNoOrigin) != c.unknown {
			t.Errorf("%s: %v; says that the origin is unknown: %v", c.name, err, !c.unknown)
		}
	}
}

func TestParseOriginCopies(t *testing.T) {
	b := unhex(t, "00 fb 1d 02 01"+uuidHex+"0c00000078563412")
	o, err := ovl.ParseOrigin(b)
	if err != nil {
		t.Fatal(err)
	}
	clear(b)
	if hex.EncodeToString(o.Bytes) != "0c00000078563412" {
		t.Errorf("the handle changed with the buffer: %x", o.Bytes)
	}
}

func TestOriginEncode(t *testing.T) {
	o := ovl.Origin{FileHandle: sys.FileHandle{Type: 0x81, Bytes: unhex(t, "800000000000000007000000")}}
	copy(o.UUID[:], unhex(t, uuidHex))
	native, _ := byteOrders()
	want := "00fb21" + native + "81" + uuidHex + "800000000000000007000000"
	if got := hex.EncodeToString(o.Encode()); got != want {
		t.Errorf("written %s, want %s", got, want)
	}
	if got := o.IndexName(); got != want {
		t.Errorf("index name %s, want %s", got, want)
	}
}

func TestOriginFits(t *testing.T) {
	for _, c := range []struct {
		typ  int32
		size int
		want bool
	}{
		{1, 8, true},
		{0, 1, true},
		{254, 8, true},
		{1, 128, true}, // MAX_HANDLE_SZ
		{1, 234, true},
		{1, 235, false},
		{1, 0, false},
		{255, 8, false},
		{256, 8, false},
		{-1, 8, false},
	} {
		o := ovl.Origin{FileHandle: sys.FileHandle{Type: c.typ, Bytes: bytes.Repeat([]byte{7}, c.size)}}
		if o.Fits() != c.want {
			t.Errorf("type %d, %d bytes: fits %v", c.typ, c.size, o.Fits())
		}
		if !c.want {
			continue
		}
		again, err := ovl.ParseOrigin(o.Encode())
		if err != nil || again.Type != c.typ || !bytes.Equal(again.Bytes, o.Bytes) {
			t.Errorf("type %d, %d bytes: read back as %+v, %v", c.typ, c.size, again, err)
		}
	}
}

func TestOriginInode(t *testing.T) {
	words := func(w ...uint32) (b []byte) {
		for _, v := range w {
			b = binary.NativeEndian.AppendUint32(b, v)
		}
		return b
	}
	long := binary.NativeEndian.AppendUint64(nil, 1<<40|5)
	for _, c := range []struct {
		name   string
		typ    int32
		handle []byte
		ino    uint64
		ok     bool
	}{
		{"ext4: inode, generation", 1, words(12, 99), 12, true},
		{"ext4, a large inode number", 1, words(1<<31+1, 99), 1<<31 + 1, true},
		{"tmpfs: generation, low, high", 1, words(99, 7, 3), 3<<32 | 7, true},
		{"xfs: inode, generation", 0x81, append(long, words(9)...), 1<<40 | 5, true},
		{"xfs with parent", 0x82, append(append(long, words(9)...), long...), 1<<40 | 5, true},
		{"btrfs: inode, root, generation", 0x4d, append(append(long, long...), words(9)...), 1<<40 | 5, true},
		{"too short", 1, words(12), 0, false},
		{"too short for 64 bits", 0x81, words(12), 0, false},
		{"empty", 1, nil, 0, false},
		{"of an unknown kind", 0xf8, words(1, 2, 3, 4), 0, false},
	} {
		o := ovl.Origin{FileHandle: sys.FileHandle{Type: c.typ, Bytes: c.handle}}
		if ino, ok := o.Inode(); ino != c.ino || ok != c.ok {
			t.Errorf("%s: inode %d, %v; want %d, %v", c.name, ino, ok, c.ino, c.ok)
		}
	}
}
