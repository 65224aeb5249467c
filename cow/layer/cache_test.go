package layer_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/testenv"
)

// minimal is the smallest bound that a cache takes.
const minimal = 4

// shelf is a directory of numbered files, each of which may be open in a slot of its own.
type shelf struct {
	t     testing.TB
	dir   string
	inos  []uint64
	slots []layer.Slot
	cache *layer.Cache
	base  int // descriptors of the process without the cache's
}

func newShelf(t testing.TB, files, limit int) *shelf {
	t.Helper()
	testenv.CheckLeaks(t)
	s := &shelf{t: t, dir: testenv.Scratch(t), slots: make([]layer.Slot, files), cache: layer.NewCache(limit)}
	for i := range files {
		must(t, os.WriteFile(s.path(i), nil, 0o600))
		var st unix.Stat_t
		must(t, unix.Stat(s.path(i), &st))
		s.inos = append(s.inos, st.Ino)
	}
	s.base = descriptors(t)
	t.Cleanup(func() {
		for i := range s.slots {
			s.cache.Drop(&s.slots[i])
		}
		if n := s.cache.Len(); n != 0 {
			t.Errorf("%d descriptors are counted when all are dropped", n)
		}
	})
	return s
}

func (s *shelf) path(i int) string { return filepath.Join(s.dir, fmt.Sprint(i)) }

// put opens file i and puts it into its slot.
func (s *shelf) put(i int, a layer.Access) *layer.File {
	flags := unix.O_RDONLY
	if a == layer.ReadWrite {
		flags = unix.O_RDWR
	}
	fd, err := unix.Open(s.path(i), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		s.t.Errorf("file %d: %v", i, err)
		return nil
	}
	return s.cache.Put(&s.slots[i], fd, a)
}

// fill puts and gives back the files from first to end.
func (s *shelf) fill(first, end int) {
	for i := first; i < end; i++ {
		s.put(i, layer.ReadOnly).Close()
	}
}

// has says whether file i is open in its slot, and checks that it is file i.
func (s *shelf) has(i int) bool {
	f := s.cache.Get(&s.slots[i])
	if f == nil {
		return false
	}
	defer f.Close()
	s.check(i, f)
	return true
}

func (s *shelf) check(i int, f *layer.File) {
	s.t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(f.FD(), &st); err != nil || st.Ino != s.inos[i] {
		s.t.Errorf("slot %d: descriptor %d is of inode %d, %v; want %d", i, f.FD(), st.Ino, err, s.inos[i])
	}
}

// open checks how many descriptors the cache keeps open.
func (s *shelf) open(want int) {
	s.t.Helper()
	if got := descriptors(s.t) - s.base; got != want {
		s.t.Errorf("%d descriptors are open, want %d", got, want)
	}
}

// descriptors is the number of open files of the process, other than those of the runtime's poller.
func descriptors(t testing.TB) int {
	t.Helper()
	names, err := filepath.Glob("/proc/self/fd/*")
	must(t, err)
	n := 0
	for _, name := range names {
		to, err := os.Readlink(name)
		if err == nil && to != "anon_inode:[eventpoll]" && to != "anon_inode:[eventfd]" {
			n++
		}
	}
	return n
}

func TestCacheBound(t *testing.T) {
	for limit, bound := range map[int]int{-1: minimal, 0: minimal, minimal: minimal, 40: 40} {
		s := newShelf(t, 200, limit)
		s.fill(0, 200)
		if n := s.cache.Len(); n != bound {
			t.Errorf("limit %d: %d descriptors are kept, want %d", limit, n, bound)
		}
		s.open(bound)
		left := 0
		for i := range s.slots {
			if s.has(i) {
				left++
			}
		}
		if left != bound {
			t.Errorf("limit %d: %d slots are full, want %d", limit, left, bound)
		}
		s.cache.CloseAll()
		s.open(0)
	}
}

func TestCacheKeepsWhatIsInUse(t *testing.T) {
	s := newShelf(t, 100, minimal)
	var held []*layer.File
	for i := range 50 {
		held = append(held, s.put(i, layer.ReadOnly))
	}
	s.open(50)
	s.cache.Shrink()
	s.cache.CloseAll()
	s.open(50)
	for i, f := range held {
		s.check(i, f)
		f.Close()
	}
	s.open(50)
	s.fill(50, 51) // the bound is kept by whoever adds
	s.open(minimal)
}

func TestCacheSecondChance(t *testing.T) {
	s := newShelf(t, 4*minimal, minimal)
	s.fill(0, minimal)
	for i := minimal; i < len(s.slots); i++ {
		if !s.has(3) { // used once between each two others
			t.Fatalf("the one in use all the time was closed when %d others were opened", i-minimal)
		}
		s.fill(i, i+1)
	}
	s.open(minimal)
}

func TestCachePutOverFilled(t *testing.T) {
	s := newShelf(t, 1, minimal)
	reader := s.put(0, layer.ReadOnly)
	again := s.put(0, layer.ReadOnly)
	if again != reader {
		t.Error("a second descriptor was kept")
	}
	s.open(1)
	writer := s.put(0, layer.ReadWrite)
	if writer == reader || !writer.Writable || reader.Writable {
		t.Error("a reader's descriptor is given to a writer")
	}
	s.open(2) // the reader's is in use
	if n := s.cache.Len(); n != 1 {
		t.Errorf("%d descriptors are counted", n)
	}
	if f := s.put(0, layer.ReadOnly); f != writer {
		t.Error("a writer's descriptor does not serve a reader")
	} else {
		f.Close()
	}
	again.Close()
	s.open(2)
	s.check(0, reader)
	reader.Close()
	s.open(1)
	s.check(0, writer)
	writer.Close()
	s.open(1)

	s.cache.Drop(&s.slots[0])
	s.put(0, layer.ReadOnly).Close()
	s.put(0, layer.ReadWrite).Close() // replaced when idle: closed at once
	s.open(1)
}

func TestCacheDrop(t *testing.T) {
	s := newShelf(t, 2, minimal)
	f := s.put(0, layer.ReadOnly)
	g := s.cache.Get(&s.slots[0])
	s.cache.Drop(&s.slots[0])
	s.cache.Drop(&s.slots[0])
	if s.has(0) || s.cache.Len() != 0 {
		t.Error("the slot is full after Drop")
	}
	f.Close()
	s.check(0, g)
	s.open(1)
	g.Close()
	s.open(0)
	s.cache.Drop(&s.slots[1])
	if s.has(1) {
		t.Error("an empty slot is full")
	}
}

func TestCachePin(t *testing.T) {
	s := newShelf(t, 100, minimal)
	for i := range 20 {
		f := s.put(i, layer.ReadWrite)
		s.cache.Pin(&s.slots[i])
		s.cache.Pin(&s.slots[i])
		f.Close()
		must(t, os.Remove(s.path(i)))
	}
	s.fill(20, 100)
	s.open(20 + minimal) // pinned ones are beside the bound
	s.cache.Shrink()
	s.cache.CloseAll()
	s.open(20)
	for i := range 20 {
		if !s.has(i) {
			t.Errorf("the only way to file %d was closed", i)
		}
		s.cache.Drop(&s.slots[i])
	}
	s.open(0)
	s.cache.Pin(&s.slots[0])
	if s.has(0) {
		t.Error("an empty slot is full after Pin")
	}
}

func TestCacheShrink(t *testing.T) {
	s := newShelf(t, 64, 64)
	for i := range 64 {
		f := s.put(i, layer.ReadOnly)
		if i < 8 {
			defer f.Close()
			continue
		}
		f.Close()
		s.has(i) // used recently: no reason to stay when descriptors have run out
	}
	s.cache.Shrink()
	s.open(32)
	s.cache.Shrink()
	s.open(16)
	s.cache.Shrink()
	s.open(8)
	s.cache.Shrink()
	s.open(8) // all in use
	s.fill(8, 64)
	s.open(64) // the bound is what it was
}

func TestFilesOutsideACache(t *testing.T) {
	s := newShelf(t, 1, minimal)
	fd, err := unix.Open(s.path(0), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	b := layer.Borrow(fd)
	b.Close()
	s.check(0, b)
	layer.Own(fd).Close()
	s.open(0)
}

// TestCacheAtOnce lets goroutines do everything to few slots: whoever gets a descriptor has that of the slot's file for as long
// as it is in use, the bound holds but for what is in use, and all is closed in the end.
func TestCacheAtOnce(t *testing.T) {
	const workers, rounds = 8, 3000
	s := newShelf(t, 3*minimal, minimal)
	var wg sync.WaitGroup
	for w := range workers {
		rnd := rand.New(rand.NewPCG(uint64(w), 0))
		wg.Go(func() {
			for range rounds {
				s.step(rnd)
			}
		})
	}
	wg.Wait()
	s.fill(0, 1)
	if n := s.cache.Len(); n > minimal {
		t.Errorf("%d descriptors are kept, the bound is %d", n, minimal)
	}
	for i := range s.slots {
		s.cache.Drop(&s.slots[i])
	}
	s.open(0)
}

func (s *shelf) step(rnd *rand.Rand) {
	i := rnd.IntN(len(s.slots))
	switch op := rnd.IntN(100); {
	case op < 3:
		s.cache.Drop(&s.slots[i])
	case op < 5:
		s.cache.Pin(&s.slots[i])
	case op < 6:
		s.cache.Shrink()
	case op < 7:
		s.cache.CloseAll()
	default:
		want := layer.ReadOnly
		if op < 30 {
			want = layer.ReadWrite
		}
		f := s.cache.Get(&s.slots[i])
		if f != nil && want == layer.ReadWrite && !f.Writable {
			f.Close()
			f = nil
		}
		if f == nil {
			if f = s.put(i, want); f == nil {
				return
			}
		}
		if want == layer.ReadWrite && !f.Writable {
			s.t.Errorf("slot %d: a writer got a reader's descriptor", i)
		}
		s.check(i, f)
		f.Close()
	}
}

// TestLetGo: descriptors for writing that nobody uses become such for reading, of the same file.
func TestLetGo(t *testing.T) {
	s := newShelf(t, 4, 100)
	s.cache.LetGo(20 * time.Millisecond)
	used := s.put(0, layer.ReadWrite)
	s.put(1, layer.ReadWrite).Close()
	s.put(2, layer.ReadOnly).Close()
	s.put(3, layer.ReadWrite).Close()
	s.cache.Pin(&s.slots[3])
	for deadline := time.Now().Add(10 * time.Second); s.writes(1); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a descriptor for writing stays")
		}
	}
	if !s.writes(0) || s.writes(2) || !s.writes(3) {
		t.Error("descriptors that are in use, for reading or pinned are others now")
	}
	s.open(4)
	used.Close()
	for deadline := time.Now().Add(10 * time.Second); s.writes(0); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a descriptor for writing stays that was used for long")
		}
	}
	s.put(1, layer.ReadWrite).Close()
	if !s.writes(1) {
		t.Error("the file is not open for writing again")
	}
	s.cache.CloseAll()
	s.open(1) // the pinned one
}

// writes says whether file i is open for writing in its slot.
func (s *shelf) writes(i int) bool {
	s.t.Helper()
	f := s.cache.Get(&s.slots[i])
	if f == nil {
		s.t.Fatalf("file %d is not open", i)
	}
	defer f.Close()
	s.check(i, f)
	flags, err := unix.FcntlInt(uintptr(f.FD()), unix.F_GETFL, 0)
	must(s.t, err)
	if is := flags&unix.O_ACCMODE == unix.O_RDWR; is != f.Writable {
		s.t.Errorf("file %d is said to be open for writing: %t; it is: %t", i, f.Writable, is)
	}
	return f.Writable
}
