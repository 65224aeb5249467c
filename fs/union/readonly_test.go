package union

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
)

// TestSecondReader: while one mount writes, another that only reads the same upper and work directory shows what was
// written so far, hard links of lower files included.
func TestSecondReader(t *testing.T) {
	s := newStack(t)
	if err := os.Link(s.lower+"/f", s.lower+"/g"); err != nil {
		t.Fatal(err)
	}
	u := s.open(nil)
	defer u.Close()
	n := write(t, u, "new")
	defer u.Forget(n, 1)

	var ls []*layer.Layer
	for _, d := range []string{s.lower, s.upper, s.work} {
		l, err := layer.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		ls = append(ls, l)
	}
	r, err := New(Options{Lowers: ls[:1], Upper: ls[1], Work: ls[2], ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, name := range []string{"f", "g"} {
		got, a, err := r.Lookup(r.Root(), name)
		if err != nil {
			t.Fatal(err)
		}
		var buf [8]byte
		k, err := r.Read(got, buf[:], 0)
		if err != nil || string(buf[:k]) != "new" || a.Nlink != 2 || a.Ino != n.Ino() {
			t.Errorf("%s reads %q, links %d, inode %d instead of %d, %v", name, buf[:k], a.Nlink, a.Ino, n.Ino(), err)
		}
		if _, err := r.Write(got, []byte("x"), 0, KeepSetID); !errors.Is(err, unix.EROFS) {
			t.Errorf("write to the reader: %v", err)
		}
		r.Forget(got, 1)
	}
	if _, _, err := r.Mkdir(&Caller{}, r.Root(), "d", 0o755); !errors.Is(err, unix.EROFS) {
		t.Errorf("mkdir in the reader: %v", err)
	}
}
