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
	if _, err := u.Write(g, []byte("new"), 0, KeepSetID); err != nil {
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

// TestChangeBesideCopyUp: what an application changes of a directory while a copy-up publishes a name in it stays, and shows.
func TestChangeBesideCopyUp(t *testing.T) {
	mtime := sys.Time{Sec: 1e9, Nsec: 7}
	for what, change := range map[string]func(u *Union, n *Node) error{
		"times": func(u *Union, n *Node) error {
			_, err := u.SetAttr(&Caller{}, n, &SetAttrIn{Valid: SetMtime, Mtime: mtime})
			return err
		},
		"an attribute": func(u *Union, n *Node) error { return u.Setxattr(n, "user.a", []byte("v"), 0) },
	} {
		t.Run(what, func(t *testing.T) {
			s := newStack(t)
			if err := os.Mkdir(s.lower+"/d", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.lower+"/d/f", []byte("old"), 0o644); err != nil {
				t.Fatal(err)
			}
			var between func()
			u := s.open(&sys.Mutator{Hook: func(call string) error {
				if (call == "linkfd" || call == "rename") && between != nil {
					between()
				}
				return nil
			}})
			defer u.Close()
			find := func(dir *Node, name string) *Node {
				n, _, err := u.Lookup(dir, name)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			d := find(u.Root(), "d")
			f := find(d, "f")
			if err := u.copyUpMeta(d); err != nil {
				t.Fatal(err)
			}
			const coarse = 10 * time.Millisecond // as the kernel's clock may be
			time.Sleep(2 * coarse)
			began := time.Now().Add(-coarse)
			changed := make(chan error, 1)
			between = func() {
				between = nil
				ended := make(chan struct{})
				go func() {
					changed <- change(u, d)
					close(ended)
				}()
				select {
				case <-ended:
				case <-time.After(200 * time.Millisecond): // it waits for the copy-up
				}
			}
			if err := u.copyUpData(f); err != nil {
				t.Fatal(err)
			}
			if between != nil {
				t.Fatal("nothing was published")
			}
			if err := <-changed; err != nil {
				t.Fatal(err)
			}
			after, err := u.GetAttr(d)
			if err != nil {
				t.Fatal(err)
			}
			if ctime := time.Unix(after.Ctime.Sec, int64(after.Ctime.Nsec)); ctime.Before(began) {
				t.Errorf("the directory has the ctime %v, and was changed after %v", ctime, began)
			}
			if what == "times" && after.Mtime != mtime {
				t.Errorf("the directory has the mtime %v, want %v", after.Mtime, mtime)
			}
		})
	}
}
