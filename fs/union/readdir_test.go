package union

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// TestListingKeepsUp compares a listing that is kept beside changes with one that is made anew, step by step.
func TestListingKeepsUp(t *testing.T) {
	s := newStack(t)
	for i := range 40 {
		okT(t, os.WriteFile(fmt.Sprintf("%s/n%d", s.lower, i), nil, 0o644))
	}
	u := s.open(nil)
	defer func() { okT(t, u.Close()) }()
	root, c, rnd := u.Root(), &Caller{}, rand.New(rand.NewPCG(1, 2))
	kept := 0
	for step := range 4000 {
		okT(t, u.changeSomething(c, rnd))
		if rnd.IntN(3) > 0 {
			continue // several changes between two looks
		}
		if root.dir.listing != nil {
			kept++
		}
		got := listAll(t, u, root)
		root.dir.listing = nil
		want := listAll(t, u, root)
		if !slices.Equal(got, want) {
			t.Fatalf("step %d:\n got %v\nwant %v", step, got, want)
		}
		if _, err := u.ReadDir(root, 0, make([]Dirent, 5)); err != nil { // somebody is in the middle of it
			t.Fatal(err)
		}
	}
	if kept < 1000 {
		t.Errorf("the listing was kept %d times", kept)
	}
}

// changeSomething changes an entry of the root, if it is as that needs.
func (u *Union) changeSomething(c *Caller, rnd *rand.Rand) error {
	root := u.Root()
	name, other := fmt.Sprint("n", rnd.IntN(80)), fmt.Sprint("n", rnd.IntN(80))
	var n *Node
	var err error
	switch rnd.IntN(8) {
	case 0, 1:
		n, _, err = u.Create(c, root, name, 0o644, unix.O_EXCL)
	case 2:
		n, _, err = u.Mkdir(c, root, name, 0o755)
	case 3:
		err = u.Unlink(root, name)
	case 4:
		err = u.Rmdir(root, name)
	case 5:
		err = u.Rename(c, root, name, root, other, 0)
	case 6:
		err = u.Rename(c, root, name, root, other, unix.RENAME_EXCHANGE)
	case 7:
		if n, _, err = u.Lookup(root, name); err == nil {
			_, err = u.Link(n, root, other)
		}
	}
	if n != nil {
		u.Forget(n, 1)
	}
	for _, usual := range []error{unix.EEXIST, unix.ENOENT, unix.EISDIR, unix.ENOTDIR, unix.EPERM, unix.ENOTEMPTY} {
		if errors.Is(err, usual) {
			return nil
		}
	}
	return err
}

func listAll(t *testing.T, u *Union, dir *Node) (all []Dirent) {
	t.Helper()
	buf := make([]Dirent, 7)
	for off := uint64(0); ; off = buf[len(buf)-1].Next {
		buf = buf[:cap(buf)]
		n, err := u.ReadDir(dir, off, buf)
		okT(t, err)
		if buf = buf[:n]; n == 0 {
			return all
		}
		all = append(all, buf...)
	}
}

// TestListingCollision: which of two names with one hash comes first is for all of them together.
func TestListingCollision(t *testing.T) {
	at := nameOffset("a")
	for name, l := range map[string]*listing{
		"with an old one": {entries: []listEntry{{name: "b", off: at + 1}}, added: []listEntry{{name: "a", off: at}}},
		"of two new ones": {added: []listEntry{{name: "a", off: at}, {name: "b", off: at}}},
	} {
		if l.merge() {
			t.Errorf("%s: %+v", name, l.entries)
		}
	}
	l := &listing{entries: []listEntry{{off: at}}, removed: 1, added: []listEntry{{name: "a", off: at, typ: 8}, {name: "a", off: at, typ: 4}}}
	if !l.merge() || len(l.entries) != 2 || l.entries[1].name != "a" || l.entries[1].typ != 4 {
		t.Errorf("in the place of a removed one: %+v", l)
	}
}

// TestListingTorn: the end of a listing tells of a change that came while an answer was on its way, for as long as that answer may be.
func TestListingTorn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newStack(t).open(nil)
		defer u.Close()
		mk := func(name string) {
			t.Helper()
			n, _, err := u.Create(&Caller{}, u.Root(), name, 0o644, unix.O_EXCL)
			okT(t, err)
			u.Forget(n, 1)
		}
		want := func(torn bool) {
			t.Helper()
			listAll(t, u, u.Root())
			if got := u.ListingTorn(u.Root()); got != torn {
				t.Errorf("torn: %v", got)
			}
		}
		mk("a")
		want(false)
		mk("b")
		want(true)
		want(true)
		time.Sleep(readerDelay)
		want(true)
		want(false)
		okT(t, u.Unlink(u.Root(), "b"))
		want(true)
		time.Sleep(2 * readerDelay)
		want(true)
		want(false)
		time.Sleep(readerDelay)
		mk("c")
		want(false)
	})
}

// BenchmarkListWhileCreating lists a directory of 20,000 files while a file is made between any two requests.
func BenchmarkListWhileCreating(b *testing.B) {
	u := newStack(b).open(nil)
	defer u.Close()
	c := &Caller{}
	mk := func(name string) {
		n, _, err := u.Create(c, u.Root(), name, 0o644, unix.O_EXCL)
		okT(b, err)
		u.Forget(n, 1)
	}
	for i := range 20_000 {
		mk(fmt.Sprint("old", i))
	}
	buf := make([]Dirent, 200)
	made := 0
	for b.Loop() {
		for off := uint64(0); ; {
			n, err := u.ReadDir(u.Root(), off, buf)
			okT(b, err)
			if n == 0 {
				break
			}
			off = buf[n-1].Next
			mk(fmt.Sprint("new", made))
			made++
		}
	}
}
