package union

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNamesOfPlaceholders: with xattr_permissions a FIFO is an empty file of the upper, which is no whiteout on account of its name,
// whether it was made, linked, renamed or copied up there.
func TestNamesOfPlaceholders(t *testing.T) {
	s := newStack(t)
	for _, victim := range []string{"made", "linked", "moved", "copied", "alias"} {
		if err := os.WriteFile(filepath.Join(s.lower, victim), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{".wh.copied", "low"} {
		if err := unix.Mkfifo(filepath.Join(s.lower, name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(s.lower, "low"), filepath.Join(s.lower, ".wh.alias")); err != nil {
		t.Fatal(err)
	}
	want := []string{".wh.alias", ".wh.copied", ".wh.linked", ".wh.made", ".wh.moved", "alias", "copied", "f", "linked", "low", "made", "moved"}

	open := func() *Union {
		u, err := s.openAs(Options{XattrPermissions: XattrPermissionsUser})
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	u := open()
	c := &Caller{}
	if _, _, err := u.Mknod(c, u.Root(), ".wh.made", unix.S_IFIFO|0o644, 0); err != nil {
		t.Fatal(err)
	}
	n, _, err := u.Mknod(c, u.Root(), "fifo", unix.S_IFIFO|0o644, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Link(n, u.Root(), ".wh.linked"); err != nil {
		t.Fatal(err)
	}
	if err := u.Rename(c, u.Root(), "fifo", u.Root(), ".wh.moved", 0); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".wh.copied", "low"} {
		n, _, err := u.Lookup(u.Root(), name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.SetAttr(c, n, &SetAttrIn{Valid: SetMode, Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
	}
	if got := slices.Sorted(slices.Values(names(t, u, u.Root()))); !slices.Equal(got, want) {
		t.Errorf("at once: %q, want %q", got, want)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	u = open()
	defer u.Close()
	if got := slices.Sorted(slices.Values(names(t, u, u.Root()))); !slices.Equal(got, want) {
		t.Errorf("after a remount: %q, want %q", got, want)
	}
}
