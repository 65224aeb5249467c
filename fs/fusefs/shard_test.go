package fusefs

import (
	"os"
	"sync"
	"testing"

	"plyfs/cow/layer"
	"plyfs/fs/union"
)

// Without a hard-link index a copy-up changes the number of a hard-linked file: the counts of its id stay guarded by one lock.
func TestTableWhileNumberChanges(t *testing.T) {
	dir := t.TempDir()
	var ls []*layer.Layer
	for _, d := range []string{"/lower", "/upper", "/work"} {
		if err := os.Mkdir(dir+d, 0o755); err != nil {
			t.Fatal(err)
		}
		l, err := layer.Open(dir + d)
		if err != nil {
			t.Fatal(err)
		}
		ls = append(ls, l)
	}
	if err := os.WriteFile(dir+"/lower/f", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(dir+"/lower/f", dir+"/lower/g"); err != nil {
		t.Fatal(err)
	}
	u, err := union.New(union.Options{Lowers: ls[:1], Upper: ls[1], Work: ls[2], NoIndex: true})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	n, _, err := u.Lookup(u.Root(), "f")
	if err != nil {
		t.Fatal(err)
	}
	tb := newTable(u.Root())
	tb.acquire(n)
	before := tb.shard(n)
	var wg sync.WaitGroup
	look := func() {
		for range 200000 {
			id, _ := tb.acquire(n)
			tb.forget(id, 1)
		}
	}
	wg.Go(look)
	wg.Go(look)
	if _, err := u.Write(n, []byte("y"), 0, union.KeepSetID); err != nil {
		t.Fatal(err)
	}
	if tb.shard(n) != before {
		t.Error("another lock guards the node now")
	}
	wg.Wait()
	if s := tb.slot(tb.current(n)); s == nil || s.lookups != 1 {
		t.Errorf("the count of lookups is wrong: %+v", s)
	}
}
