package fusefs

import (
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"plyfs/fs/union"
)

func TestTable(t *testing.T) {
	root := new(union.Node)
	tb := newTable(root)
	if tb.node(rootID) != root || tb.node(0) != nil || tb.node(2) != nil || tb.node(1<<40) != nil {
		t.Fatal("wrong nodes in a new table")
	}
	if n, _, _ := tb.forget(rootID, 5); n != nil || tb.node(rootID) != root {
		t.Error("the root was forgotten")
	}
	a := new(union.Node)
	id, s := tb.acquire(a)
	gen := s.gen.Load()
	if again, _ := tb.acquire(a); again != id || tb.current(a) != id {
		t.Errorf("second id %d, first %d", again, id)
	}
	if _, ok := tb.again(id); !ok {
		t.Error("again refused")
	}
	if n, _, _ := tb.forget(id, 2); n != nil {
		t.Error("forgotten too early")
	}
	if n, refs, _ := tb.forget(id, 1); n != a || refs != 2 {
		t.Errorf("forget gave %p with %d references, want %p with 2", n, refs, a)
	}
	if tb.node(id) != nil || tb.current(a) != 0 || tb.len() != 1 {
		t.Error("the id is still known")
	}
	if id2, s := tb.acquire(a); id2 == id && s.gen.Load() == gen {
		t.Error("the id came back with the same generation")
	}
}

// TestTableForgetUnseen: the kernel forgets an entry when it has it, which orders the two, in a way that the race detector does not see.
func TestTableForgetUnseen(t *testing.T) {
	f := &FS{table: newTable(new(union.Node))}
	n := new(union.Node)
	var e entry
	go f.enter(n, &e)
	for f.table.len() == 0 {
		runtime.Gosched()
	}
	time.Sleep(10 * time.Millisecond)
	f.table.forget(f.table.current(n), 1)
}

func TestTableStaleID(t *testing.T) {
	tb := newTable(new(union.Node))
	n := new(union.Node)
	first, _ := tb.acquire(n)
	tb.detach(n, first)
	second, _ := tb.acquire(n)
	if first == second {
		t.Fatal("no second id")
	}
	if got, refs, _ := tb.forget(first, 1); got != n || refs != 1 {
		t.Error("the stale id gave no reference back")
	}
	if tb.current(n) != second {
		t.Error("forgetting the stale id lost the other one")
	}
}

// TestTableGenerations: an id and a generation never come back together, though chunks come and go.
func TestTableGenerations(t *testing.T) {
	tb := newTable(new(union.Node))
	type handle struct {
		id  uint64
		gen uint32
	}
	seen := make(map[handle]bool)
	for range 4 {
		var ids []uint64
		for range 3 * chunkLen {
			id, s := tb.acquire(new(union.Node))
			if h := (handle{id, s.gen.Load()}); seen[h] {
				t.Fatalf("%v came back", h)
			} else {
				seen[h] = true
			}
			ids = append(ids, id)
		}
		rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
		for _, id := range ids {
			if n, refs, _ := tb.forget(id, 1); n == nil || refs != 1 {
				t.Fatalf("id %d lost", id)
			}
		}
	}
}

// TestTableShrinks: what a walk over a large tree took is given back when the kernel forgets.
func TestTableShrinks(t *testing.T) {
	tb := newTable(new(union.Node))
	ids := make([]uint64, 100*chunkLen)
	for i := range ids {
		ids[i], _ = tb.acquire(new(union.Node))
	}
	for _, id := range ids {
		tb.forget(id, 1)
	}
	chunks := 0
	for i := range *tb.dir.Load() {
		if (*tb.dir.Load())[i].Load() != nil {
			chunks++
		}
	}
	if chunks > 3 {
		t.Errorf("%d chunks left", chunks)
	}
}

func BenchmarkTable(b *testing.B) {
	tb := newTable(new(union.Node))
	nodes := make([]union.Node, 1000)
	b.ReportAllocs()
	for i := range b.N {
		id, _ := tb.acquire(&nodes[i%len(nodes)])
		if tb.node(id) == nil {
			b.Fatal("lost")
		}
		tb.forget(id, 1)
	}
}
