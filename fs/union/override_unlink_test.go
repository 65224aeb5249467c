package union

import (
	"testing"

	"plyfs/cow/layer"
	"plyfs/internal/sys"
)

// TestReadWhileUnlinkedWithOverride: a file of a store with xattr_permissions can be read while it is unlinked.
func TestReadWhileUnlinkedWithOverride(t *testing.T) {
	s := newStack(t)
	var ls []*layer.Layer
	for _, d := range []string{s.lower, s.upper, s.work} {
		l, err := layer.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		ls = append(ls, l)
	}
	m := &sys.Mutator{}
	u, err := New(Options{Lowers: ls[:1], Upper: ls[1], Work: ls[2], Mutator: m, XattrPermissions: XattrPermissionsUser})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	n, _, err := u.Create(&Caller{}, u.Root(), "a", 0o644, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write(n, []byte("A"), 0, KeepSetID); err != nil {
		t.Fatal(err)
	}
	u.files.Drop(&n.data) // as the cache does when it is full
	m.Hook = func(op string) error {
		if op == "unlink" {
			var p [8]byte
			if k, err := u.Read(n, p[:], 0); err != nil || string(p[:k]) != "A" {
				t.Errorf("read during unlink: %q, %v", p[:k], err)
			}
		}
		return nil
	}
	if err := u.Unlink(u.Root(), "a"); err != nil {
		t.Fatal(err)
	}
}
