package union

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLookupWhileOtherNameGoes: a look-up of one name of a hard link must not be disturbed by the removal of another one.
func TestLookupWhileOtherNameGoes(t *testing.T) {
	s := newStack(t)
	for _, d := range []string{"/d1", "/d2"} {
		if err := os.Mkdir(s.upper+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const links = 5000
	for i := range links {
		a := fmt.Sprintf("%s/d1/l%d", s.upper, i)
		if err := os.WriteFile(a, []byte("A"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(a, fmt.Sprintf("%s/d2/l%d", s.upper, i)); err != nil {
			t.Fatal(err)
		}
	}
	u := s.open(nil)
	defer u.Close()
	get := func(dir *Node, name string) *Node {
		n, _, err := u.Lookup(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	d1, d2 := get(u.Root(), "d1"), get(u.Root(), "d2")
	for i := range links {
		get(d1, fmt.Sprintf("l%d", i))
	}
	bad := 0
	for i := range links {
		var wg sync.WaitGroup
		start := make(chan struct{})
		wg.Go(func() {
			<-start
			if err := u.Unlink(d1, fmt.Sprintf("l%d", i)); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			<-start
			for began := time.Now(); time.Since(began) < time.Duration(i%40)*time.Microsecond; {
				runtime.Gosched()
			}
			if _, _, err := u.Lookup(d2, fmt.Sprintf("l%d", i)); err != nil {
				bad++
				if bad < 4 {
					t.Errorf("l%d: %v", i, err)
				}
			}
		})
		close(start)
		wg.Wait()
	}
	if bad > 0 {
		t.Errorf("%d were wrong", bad)
	}
}

// TestGetAttrWhileRenamed: fstat of a file does not depend on its name.
func TestGetAttrWhileRenamed(t *testing.T) {
	s := newStack(t)
	if err := os.WriteFile(s.upper+"/a", []byte("A"), 0o644); err != nil {
		t.Fatal(err)
	}
	u := s.open(nil)
	defer u.Close()
	n, _, err := u.Lookup(u.Root(), "a")
	if err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			for _, p := range [][2]string{{"a", "b"}, {"b", "a"}} {
				if err := u.Rename(&Caller{}, u.Root(), p[0], u.Root(), p[1], 0); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	bad := 0
	for range 20000 {
		if _, err := u.GetAttr(n); err != nil {
			bad++
			if bad < 4 {
				t.Errorf("getattr: %v", err)
			}
		}
	}
	stop.Store(true)
	wg.Wait()
	if bad > 0 {
		t.Errorf("%d were wrong", bad)
	}
}

// TestReadWhileExchanged: two files change places again and again; each must keep its data.
func TestReadWhileExchanged(t *testing.T) {
	s := newStack(t)
	write := func(name, data string) {
		if err := os.WriteFile(s.upper+"/"+name, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("a", "A")
	write("b", "B")
	u := s.open(nil)
	defer u.Close()
	a, _, err := u.Lookup(u.Root(), "a")
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := u.Lookup(u.Root(), "b")
	if err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			if err := u.Rename(&Caller{}, u.Root(), "a", u.Root(), "b", unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
		}
	})
	bad := 0
	for range 20000 {
		u.files.Drop(&a.data) // as the cache does when it is full
		u.files.Drop(&b.data)
		var p [8]byte
		for n, want := range map[*Node]string{a: "A", b: "B"} {
			k, err := u.Read(n, p[:], 0)
			if err != nil || string(p[:k]) != want {
				bad++
				if bad < 4 {
					t.Errorf("read %q, %v; want %q", p[:k], err, want)
				}
			}
		}
	}
	stop.Store(true)
	wg.Wait()
	if bad > 0 {
		t.Errorf("%d were wrong", bad)
	}
}
