package ovl_test

import (
	"math"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
)

func TestNlink(t *testing.T) {
	for text, want := range map[string]ovl.NlinkDelta{
		"U+0":          {},
		"U+1":          {Delta: 1},
		"U-1":          {Delta: -1},
		"L+0":          {OfLower: true},
		"L-3":          {OfLower: true, Delta: -3},
		"L+64999":      {OfLower: true, Delta: 64999},
		"U+2147483647": {Delta: math.MaxInt32},
		"U-2147483648": {Delta: math.MinInt32},
	} {
		got, err := ovl.ParseNlink([]byte(text))
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
		if enc := string(want.Encode()); enc != text {
			t.Errorf("%+v is written %q, want %q", want, enc, text)
		}
	}
}

// What the kernel refuses (cf. inode.c ovl_get_nlink): it reads a 32-bit number with exactly one sign.
func TestNlinkRefuses(t *testing.T) {
	for _, text := range []string{
		"", "U", "U+", "U1", "+1", "X+1", "u+1", "U+-1", "U++1", "U+ 1", "U+1 ", "U+0x1", "U+1_0", "U+1\x00", "UL+1",
		"U+2147483648", "U-2147483649", "L+9223372036854775807", "L+99999999999999999999",
	} {
		if d, err := ovl.ParseNlink([]byte(text)); err == nil {
			t.Errorf("%q: parsed as %+v", text, d)
		}
	}
}

func TestOverride(t *testing.T) {
	for _, c := range []struct {
		text string
		want ovl.OverrideStat
		enc  string // "" for text itself
	}{
		{"0:0:755:dir", ovl.OverrideStat{Mode: unix.S_IFDIR | 0o755, HasType: true}, ""},
		{"1000:100:4711:file", ovl.OverrideStat{UID: 1000, GID: 100, Mode: unix.S_IFREG | 0o4711, HasType: true}, ""},
		{"1:2:777:symlink", ovl.OverrideStat{UID: 1, GID: 2, Mode: unix.S_IFLNK | 0o777, HasType: true}, ""},
		{"1:2:600:pipe", ovl.OverrideStat{UID: 1, GID: 2, Mode: unix.S_IFIFO | 0o600, HasType: true}, ""},
		{"1:2:600:socket", ovl.OverrideStat{UID: 1, GID: 2, Mode: unix.S_IFSOCK | 0o600, HasType: true}, ""},
		{
			"0:6:660:block-8-17",
			ovl.OverrideStat{GID: 6, Mode: unix.S_IFBLK | 0o660, HasType: true, Rdev: unix.Mkdev(8, 17)},
			"",
		},
		{"0:0:666:char-1-3", ovl.OverrideStat{Mode: unix.S_IFCHR | 0o666, HasType: true, Rdev: unix.Mkdev(1, 3)}, ""},
		{"0:0:0:char-0-0", ovl.OverrideStat{Mode: unix.S_IFCHR, HasType: true}, ""},
		{
			"0:0:600:char-4095-1048575",
			ovl.OverrideStat{Mode: unix.S_IFCHR | 0o600, HasType: true, Rdev: unix.Mkdev(4095, 1048575)},
			"",
		},
		{"4294967295:4294967295:0", ovl.OverrideStat{UID: math.MaxUint32, GID: math.MaxUint32}, ""},
		{"5:6:640", ovl.OverrideStat{UID: 5, GID: 6, Mode: 0o640}, ""},
		// What others write: a leading zero, type bits in the mode, parts that came later, an owner that chown left alone.
		{"9:-1:40755", ovl.OverrideStat{UID: 9, GID: 65534, Mode: 0o755}, "9:65534:755"},
		{"-1:7:100640", ovl.OverrideStat{UID: 65534, GID: 7, Mode: 0o640}, "65534:7:640"},
		{"5:6:0640:file", ovl.OverrideStat{UID: 5, GID: 6, Mode: unix.S_IFREG | 0o640, HasType: true}, "5:6:640:file"},
		{"5:6:100640", ovl.OverrideStat{UID: 5, GID: 6, Mode: 0o640}, "5:6:640"},
		{"5:6:640:file-x-y", ovl.OverrideStat{UID: 5, GID: 6, Mode: unix.S_IFREG | 0o640, HasType: true}, "5:6:640:file"},
		{
			"0:0:660:block-8-1-later",
			ovl.OverrideStat{Mode: unix.S_IFBLK | 0o660, HasType: true, Rdev: unix.Mkdev(8, 1)},
			"0:0:660:block-8-1",
		},
	} {
		got, err := ovl.ParseOverride([]byte(c.text))
		if err != nil || got != c.want {
			t.Errorf("%q: %+v, %v; want %+v", c.text, got, err, c.want)
		}
		if c.enc == "" {
			c.enc = c.text
		}
		if enc := string(c.want.Encode()); enc != c.enc {
			t.Errorf("%+v is written %q, want %q", c.want, enc, c.enc)
		}
	}
}

func TestOverrideRefuses(t *testing.T) {
	for _, text := range []string{
		"", ":", "::", "0:0", "0:0:", "a:0:644", "0:b:644", "0:0:rw", "0:0:648", "0:0:0o644", "-2:0:644", "0:-2:644", "+1:0:644",
		" 0:0:644", "0:0:644 ", "4294967296:0:644", "0:0:777777777777", "0:0:644:", "0:0:644:directory", "0:0:644:File",
		"0:0:644:file:x", "0:0:644:block", "0:0:644:block-8", "0:0:644:char-x-1", "0:0:644:char-1-", "0:0:644:char-1-4294967296",
		"0:0:644\x00",
	} {
		if o, err := ovl.ParseOverride([]byte(text)); err == nil {
			t.Errorf("%q: parsed as %+v", text, o)
		}
	}
}

func TestUnsynced(t *testing.T) {
	want := ovl.UnsyncedMark{Boot: "8f2b6f2c-6d0d-4a8e-9d68-0123456789ab", Lower: "usr/lib/libc.so\n\xff"}
	enc := want.Encode()
	if string(enc) != want.Boot+"\x00"+want.Lower {
		t.Errorf("written %q", enc)
	}
	if got, err := ovl.ParseUnsynced(enc); err != nil || got != want {
		t.Errorf("read back as %+v, %v", got, err)
	}
	for _, text := range []string{"", "\x00", "boot", "boot\x00", "\x00lower"} {
		if m, err := ovl.ParseUnsynced([]byte(text)); err == nil {
			t.Errorf("%q: parsed as %+v", text, m)
		}
	}
}

func TestOpaque(t *testing.T) {
	for _, c := range []struct {
		value         string
		opaque, xform bool
	}{
		{"y", true, false},
		{"x", false, true},
		{"", false, false},
		{"n", false, false},
		{"Y", false, false},
		{"yes", true, false}, // fuse-overlayfs looks at the first byte only
		{"xy", false, false},
	} {
		if got := ovl.IsOpaque([]byte(c.value)); got != c.opaque {
			t.Errorf("%q: opaque %v", c.value, got)
		}
		if got := ovl.HasXWhiteouts([]byte(c.value)); got != c.xform {
			t.Errorf("%q: whiteouts in attribute form %v", c.value, got)
		}
	}
	if !ovl.IsOpaque(ovl.OpaqueValue()) || string(ovl.OpaqueValue()) != "y" {
		t.Errorf("opaque is written %q", ovl.OpaqueValue())
	}
	if v := ovl.MetacopyValue(); len(v) != 0 {
		t.Errorf("a metadata-only copy without a digest has value %q", v)
	}
}
