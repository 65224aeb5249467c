package ovl_test

import (
	"reflect"
	"strings"
	"testing"

	"plyfs/cow/ovl"
)

// The kernel's names, from overlayfs.h OVL_XATTR_*_POSTFIX.
func TestNames(t *testing.T) {
	for prefix, n := range map[string]*ovl.Names{"trusted.": ovl.Trusted(), "user.": ovl.User()} {
		for got, want := range map[string]string{
			n.Opaque: "opaque", n.Redirect: "redirect", n.Metacopy: "metacopy", n.Origin: "origin", n.Impure: "impure",
			n.Nlink: "nlink", n.Upper: "upper", n.Whiteout: "whiteout",
		} {
			if got != prefix+"overlay."+want {
				t.Errorf("%s is %q", want, got)
			}
		}
		// plyfs's own lie where the kernel hides them and never looks, and none has the name of another.
		seen := make(map[string]bool)
		v := reflect.ValueOf(*n)
		for i := range v.NumField() {
			name := v.Field(i).String()
			if seen[name] || !strings.HasPrefix(name, prefix+"overlay.") {
				t.Errorf("%s is %q", v.Type().Field(i).Name, name)
			}
			seen[name] = true
			if _, visible := ovl.UnescapeXattr(name); visible {
				t.Errorf("%s is visible to applications", name)
			}
		}
	}
}

func TestAUFSNames(t *testing.T) {
	for _, c := range []struct {
		name, victim          string
		aufs, ok, bookkeeping bool
	}{
		{name: "file"},
		{name: "wh.file"},
		{name: ".wh"},
		{name: ""},
		{name: ".WH.file"},
		{name: ".wh.file", victim: "file", aufs: true, ok: true},
		{name: ".wh..hidden", victim: ".hidden", aufs: true, ok: true},
		{name: ".wh..wh", victim: ".wh", aufs: true, ok: true},
		{name: ".wh. ", victim: " ", aufs: true, ok: true},
		{name: ".wh.", aufs: true},
		{name: ".wh..wh.", aufs: true, bookkeeping: true},
		{name: ".wh..wh..opq", aufs: true, bookkeeping: true},
		{name: ".wh..wh.plnk", aufs: true, bookkeeping: true},
		{name: ".wh..wh.x", aufs: true, bookkeeping: true},
	} {
		if got := ovl.IsAUFSName(c.name); got != c.aufs {
			t.Errorf("%q: of the AUFS form %v", c.name, got)
		}
		if got := ovl.IsAUFSBookkeeping(c.name); got != c.bookkeeping {
			t.Errorf("%q: bookkeeping %v", c.name, got)
		}
		if victim, ok := ovl.AUFSVictim(c.name); victim != c.victim || ok != c.ok {
			t.Errorf("%q: deletes %q, %v", c.name, victim, ok)
		}
	}
	for _, name := range []string{"a", ".a", "wh", "\xff\n"} {
		if victim, ok := ovl.AUFSVictim(ovl.AUFSWhiteout(name)); victim != name || !ok {
			t.Errorf("the whiteout of %q deletes %q, %v", name, victim, ok)
		}
	}
}
