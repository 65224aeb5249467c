package upperdiff

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/fs/union"
)

// unixTime is the time of all files that are not changed.
var unixTime = time.Unix(1_600_000_000, 0)

// TestRandom: whatever an application does, the changes found by the upper are those found by comparing the trees.
func TestRandom(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			x := newTree(t)
			x.TB = t
			r := rand.New(rand.NewPCG(seed, 1))
			for _, l := range []string{x.bottom, x.lower} {
				x.put(l, "d0/d1/f0", "d0/d1/f1", "d0/f2", "d1/d2/f0", "d2/f1", "f0", "f1")
				for range 6 {
					from, to := filepath.Join(l, anyPath(r)), filepath.Join(l, anyPath(r))
					_ = os.Link(from, to) // a name may be taken, a directory missing, the file none
				}
			}
			app := newApplication(t, x, seed%2 == 0)
			for range 60 {
				app.step(r)
			}
			app.close()
			got := x.changes()
			if len(got) == 0 {
				t.Error("nothing changed in 60 steps")
			}
		})
	}
}

func anyPath(r *rand.Rand) string {
	p := ""
	for range r.IntN(3) {
		p += fmt.Sprintf("d%d/", r.IntN(3))
	}
	if r.IntN(4) == 0 {
		return p + fmt.Sprintf("d%d", r.IntN(3))
	}
	return p + fmt.Sprintf("f%d", r.IntN(3))
}

// application changes a union by its interface.
type application struct {
	t *testing.T
	u *union.Union
	c union.Caller
	n int
}

func newApplication(t *testing.T, x tree, index bool) *application {
	t.Helper()
	open := func(p string) *layer.Layer {
		l, err := layer.Open(p)
		must(t, err)
		return l
	}
	u, err := union.New(union.Options{
		Lowers: []*layer.Layer{open(x.lower), open(x.bottom)}, Upper: open(x.upper), Work: open(x.work), NoIndex: !index,
	})
	must(t, err)
	return &application{t: t, u: u}
}

func (a *application) close() { must(a.t, a.u.Close()) }

// node finds a path; nil if there is none. References are kept until the union ends.
func (a *application) node(path string) *union.Node {
	at := a.u.Root()
	if path == "." {
		return at
	}
	for _, name := range splitPath(path) {
		n, _, err := a.u.Lookup(at, name)
		if err != nil {
			return nil
		}
		at = n
	}
	return at
}

func splitPath(p string) (parts []string) {
	for p != "." && p != "" {
		parts = append([]string{filepath.Base(p)}, parts...)
		p = filepath.Dir(p)
	}
	return parts
}

// step does one thing to one path. What an application may not do, such as removing a directory that is not empty,
// fails.
func (a *application) step(r *rand.Rand) {
	a.n++
	p, q := anyPath(r), anyPath(r)
	dir, to := a.node(filepath.Dir(p)), a.node(filepath.Dir(q))
	if dir == nil || to == nil || !dir.IsDir() || !to.IsDir() {
		return
	}
	name, n := filepath.Base(p), a.node(p)
	var err error
	switch r.IntN(8) {
	case 0:
		_, _, err = a.u.Mkdir(&a.c, dir, name, 0o755)
	case 1:
		_, _, err = a.u.Create(&a.c, dir, name, 0o644, unix.O_CREAT)
	case 2:
		err = a.u.Unlink(dir, name)
	case 3:
		err = a.u.Rmdir(dir, name)
	case 4:
		err = a.u.Rename(&a.c, dir, name, to, filepath.Base(q), 0)
	case 5:
		if n != nil && !n.IsDir() {
			_, err = a.u.Link(n, to, filepath.Base(q))
		}
	case 6:
		if n != nil && !n.IsDir() {
			_, err = a.u.Write(n, fmt.Appendf(nil, "%d", a.n), int64(r.IntN(8)), union.KeepSetID)
		}
	case 7:
		if n != nil {
			_, err = a.u.SetAttr(&a.c, n, &union.SetAttrIn{Valid: union.SetMode, Mode: 0o700 + uint32(r.IntN(8))})
		}
	}
	var errno unix.Errno
	if err != nil && !errors.As(err, &errno) {
		a.t.Fatal(err)
	}
	if errors.Is(err, unix.EIO) {
		a.t.Fatal(err)
	}
}
