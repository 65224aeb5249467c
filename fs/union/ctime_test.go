package union

import (
	"os"
	"testing"
	"time"

	"plyfs/internal/sys"
)

// TestOwnChangesKeepCtime: who looks at a directory or file, reads it and looks again sees no change but those of applications. tar
// fails on others.
func TestOwnChangesKeepCtime(t *testing.T) {
	s := newStack(t)
	for _, d := range []string{s.lower + "/d", s.lower + "/d/e"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(s.lower+"/d/e/g", []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	u := s.open(nil)
	defer u.Close()
	look := func(dir *Node, name string) *Node {
		t.Helper()
		n, _, err := u.Lookup(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	ctime := func(n *Node) sys.Time {
		t.Helper()
		a, err := u.GetAttr(n)
		if err != nil {
			t.Fatal(err)
		}
		return a.Ctime
	}
	d := look(u.Root(), "d")
	e := look(d, "e")
	g := look(e, "g")
	dirs := map[string]*Node{"the root": u.Root(), "its directory": d, "the file's directory": e}
	before := map[string]sys.Time{}
	for what, n := range dirs {
		before[what] = ctime(n)
	}
	tick := func() { time.Sleep(20 * time.Millisecond) } // the kernel's clock may be as coarse as 10 ms
	tick()
	if _, err := u.Write(g, []byte("new"), 0, false); err != nil {
		t.Fatal(err)
	}
	for what, n := range dirs {
		if now := ctime(n); now != before[what] {
			t.Errorf("the copy-up of a file changed the ctime of %s from %v to %v", what, before[what], now)
		}
	}
	written := ctime(g)
	tick()
	u.syncPending()
	if now := ctime(g); g.has(flagUnsynced) || now != written {
		t.Errorf("the end of the mark changed the ctime from %v to %v", written, now)
	}
	for what, change := range map[string]func(n *Node) error{
		"chmod": func(n *Node) error {
			_, err := u.SetAttr(&Caller{}, n, &SetAttrIn{Valid: SetMode, Mode: 0o755})
			return err
		},
		"an attribute": func(n *Node) error { return u.Setxattr(n, "user.a", []byte("v"), 0) },
	} {
		for _, n := range []*Node{d, e, g} {
			was := ctime(n)
			tick()
			if err := change(n); err != nil {
				t.Fatal(err)
			}
			if ctime(n) == was {
				t.Errorf("%s left the ctime of %s alone", what, u.pathOf(n))
			}
		}
	}
}
