package fuzz

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"path"
	"strings"
	"testing"

	"plyfs/cow/ovl"
)

// FuzzOrigin holds that whatever parses as an origin keeps its inode, its UUID and its index name when it is written again.
func FuzzOrigin(f *testing.F) {
	for _, s := range []string{
		"",
		"00fb1d000100112233445566778899aabbccddeeff0c00000078563412",
		"00fb2100810011223344556677889900112233445566800000000000000007000000",
		"00fb1500010000000000000000000000000000000000",
		"00fb1602f800112233445566778899aabbccddeeffff",
		"01fb1d000100112233445566778899aabbccddeeff0c00000078563412",
		"00fb1d010100112233445566778899aabbccddeeff0c00000078563412",
		"00fbff0001",
		"00fb02000100112233445566778899aabbccddeeff",
	} {
		b, err := hex.DecodeString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		o, err := ovl.ParseOrigin(value)
		if err != nil {
			if len(value) == 0 && !errors.Is(err, ovl.ErrNoOrigin) {
				t.Errorf("an empty value is no unknown origin: %v", err)
			}
			return
		}
		if raw, err := hex.DecodeString(o.IndexName()); err != nil || !bytes.Equal(raw, o.Encode()) {
			t.Fatalf("index name %s of %x: %v", o.IndexName(), o.Encode(), err)
		}
		ino, known := o.Inode()
		// The flags say of the handle what this machine would; the rest is what it was.
		enc := o.Encode()
		if len(enc) != len(value) || !bytes.Equal(enc[:3], value[:3]) || !bytes.Equal(enc[4:], value[4:]) {
			t.Fatalf("%x is written %x", value, enc)
		}
		again, err := ovl.ParseOrigin(enc)
		if err != nil || again.UUID != o.UUID || again.Type != o.Type || !bytes.Equal(again.Bytes, o.Bytes) {
			t.Fatalf("%x, written %x: %+v, %v; want %+v", value, enc, again, err, o)
		}
		if i, k := again.Inode(); i != ino || k != known {
			t.Fatalf("%x: inode %d, %v, then %d, %v", value, ino, known, i, k)
		}
	})
}

// FuzzRedirect holds that a redirect that is accepted stays within its layer and is written as it was read.
func FuzzRedirect(f *testing.F) {
	for _, s := range []string{
		"", "name", "/a/b", "/", "//", "/a/", "..", "/..", "/../x", "/a/../..", "./a", "a/b", "/a\x00b", "\x00", "...", "/.../..a",
		strings.Repeat("n", 255), strings.Repeat("n", 256), strings.Repeat("/n", 128),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		r, err := ovl.ParseRedirect(value)
		if err != nil {
			return
		}
		if !bytes.Equal(r.Value(), value) {
			t.Fatalf("%q is written %q", value, r.Value())
		}
		if r.Path == "" || strings.ContainsRune(r.Path, 0) || path.IsAbs(r.Path) || path.Clean("/"+r.Path) != "/"+r.Path {
			t.Fatalf("%q leads to %q", value, r.Path)
		}
		if !r.Absolute && path.Base(r.Path) != r.Path {
			t.Fatalf("%q is no sibling's name", value)
		}
	})
}

// FuzzNlink holds that a link count that is accepted fits the kernel's 32 bits and survives being written.
func FuzzNlink(f *testing.F) {
	for _, s := range []string{
		"", "U+0", "L-1", "U+2147483647", "U-2147483648", "U+2147483648", "L+99999999999", "X+1", "U1", "U+-1", "U+1_0", "U+01", "U+1\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		d, err := ovl.ParseNlink(value)
		if err != nil {
			return
		}
		if d.Delta < math.MinInt32 || d.Delta > math.MaxInt32 {
			t.Fatalf("%q: %d is beyond what the kernel reads", value, d.Delta)
		}
		enc := d.Encode()
		if len(enc) > 12 { // the kernel's buffer
			t.Fatalf("%q is written %q", value, enc)
		}
		if again, err := ovl.ParseNlink(enc); err != nil || again != d {
			t.Fatalf("%q, written %q: %+v, %v; want %+v", value, enc, again, err, d)
		}
	})
}

// FuzzOverride holds that an ownership attribute that is accepted survives being written, in one form.
func FuzzOverride(f *testing.F) {
	for _, s := range []string{
		"", "0:0:755:dir", "1000:100:04711:file", "1:2:777:symlink", "1:2:600:pipe-x", "1:2:600:socket", "0:6:660:block-8-17",
		"0:0:666:char-1-3-later", "5:6:100640", "4294967295:4294967295:7777", "4294967296:0:0", "0:0:644:", "0:0:644:block-8",
		"0:0:0:char-4294967295-4294967295", ":::", "-1:-1:0",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		o, err := ovl.ParseOverride(value)
		if err != nil {
			return
		}
		enc := o.Encode()
		again, err := ovl.ParseOverride(enc)
		if err != nil || again != o {
			t.Fatalf("%q, written %q: %+v, %v; want %+v", value, enc, again, err, o)
		}
		if !bytes.Equal(again.Encode(), enc) {
			t.Fatalf("%q is written %q the second time", enc, again.Encode())
		}
	})
}

// FuzzEscapeXattr holds that every name that an application may use has a name on disk of its own which is seen as it, that no
// such name is one of the union's, and that of the names on disk only those are seen.
func FuzzEscapeXattr(f *testing.F) {
	for _, s := range []string{
		"", "user.x", "trusted.overlay.opaque", "user.overlay.overlay.origin", "trusted.overlay.overlay.overlay.x", "trusted.overlay.",
		"trusted.overlay", "user.fuseoverlayfs.opaque", "security.fuseoverlayfs.fuseoverlayfs.x", "user.containers.override_stat",
		"user.containers.override_user.containers.override_stat", "user.containers.override_security.capability",
	} {
		f.Add(s, "user.x")
	}
	f.Add("trusted.overlay.x", "trusted.overlay.overlay.x")
	f.Fuzz(func(t *testing.T, name, other string) {
		disk := ovl.EscapeXattr(name)
		if seen, visible := ovl.UnescapeXattr(disk); seen != name || !visible {
			t.Fatalf("%q is kept as %q and seen as %q, %v", name, disk, seen, visible)
		}
		if (ovl.EscapeXattr(other) == disk) != (other == name) {
			t.Fatalf("%q and %q are both kept as %q", name, other, disk)
		}
		if seen, visible := ovl.UnescapeXattr(name); visible && ovl.EscapeXattr(seen) != name {
			t.Fatalf("%q on disk is seen as %q, which is kept as %q", name, seen, ovl.EscapeXattr(seen))
		}
		if _, ok := ovl.FromOverrideXattr(disk); ok {
			t.Fatalf("%q is kept as %q, which stands for a protected attribute", name, disk)
		}
		if ovl.ProtectedXattr(name) {
			if got, ok := ovl.FromOverrideXattr(ovl.OverrideXattr(name)); got != name || !ok {
				t.Fatalf("%q is overridden as %q and read as %q, %v", name, ovl.OverrideXattr(name), got, ok)
			}
		}
	})
}
