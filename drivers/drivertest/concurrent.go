package drivertest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"plyfs/drivers"
)

func concurrentCases() []aCase {
	return []aCase{
		{"Concurrent", caseConcurrent},
		{"ConcurrentOneLayer", caseConcurrentOneLayer},
		{"ConcurrentCreate", caseConcurrentCreate},
		{"ConcurrentDiff", caseConcurrentDiff},
	}
}

// workers is how many goroutines use a driver at once.
const workers = 32

// atOnce calls f in all workers and returns their errors.
func atOnce(f func(worker int) error) error {
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			if err := f(i); err != nil {
				errs[i] = fmt.Errorf("worker %d: %w", i, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// caseConcurrent has each worker make a container, write, commit and remove.
func caseConcurrent(e *env) {
	e.image("base", "", baseSteps()...)
	e.must(atOnce(func(i int) error { return e.live(fmt.Sprintf("c%d", i), fmt.Sprintf("image%d", i)) }))
	ids, err := e.ids()
	e.must(err)
	if len(ids) != workers+1 {
		e.Errorf("layers left: %v", ids)
	}
	for i := range workers {
		if i%8 == 0 {
			e.check(fmt.Sprintf("image%d", i), append(checkBase(), holds("mine", fmt.Sprintf("c%d", i)),
				absent("etc/passwd~"))...)
		}
	}
}

// live is the life of a container that is committed to an image.
func (e *env) live(id, image string) error {
	if err := e.d.CreateReadWrite(ctx(), id, "base", nil); err != nil {
		return err
	}
	root, err := e.d.Get(ctx(), id, nil)
	if err != nil {
		return err
	}
	at := &place{root: root}
	err = at.do(append(checkBase(), file("mine", id, 0o644), rename("etc/passwd", "etc/passwd~"), rename("etc/passwd~",
		"etc/passwd")))
	if err := errors.Join(err, e.d.Put(ctx(), id)); err != nil {
		return err
	}
	differ := drivers.DifferOf(e.d)
	r, err := differ.Diff(ctx(), id, "base", nil)
	if err != nil {
		return err
	}
	err = e.d.Create(ctx(), image, "base", nil)
	if err == nil {
		_, err = differ.ApplyDiff(ctx(), image, r, nil)
	}
	if err := errors.Join(err, r.Close()); err != nil {
		return err
	}
	if _, err := e.ids(); err != nil {
		return err
	}
	return e.d.Remove(ctx(), id)
}

// caseConcurrentOneLayer has all workers use one container.
func caseConcurrentOneLayer(e *env) {
	e.image("base", "", baseSteps()...)
	e.writable("c", "base")
	var mu sync.Mutex
	roots := make(map[string]bool)
	e.must(atOnce(func(i int) error {
		root, err := e.d.Get(ctx(), "c", nil)
		if err != nil {
			return err
		}
		mu.Lock()
		roots[root] = true
		mu.Unlock()
		err = (&place{root: root}).do([]step{file(fmt.Sprintf("f%d", i), "f", 0o644), holds("a file", "data")})
		if i%8 == 0 {
			r, derr := drivers.DifferOf(e.d).Diff(ctx(), "c", "base", nil)
			if derr == nil {
				_, derr = io.Copy(io.Discard, r)
				derr = errors.Join(derr, r.Close())
			}
			err = errors.Join(err, derr)
		}
		return errors.Join(err, e.d.Put(ctx(), "c"))
	}))
	if len(roots) != 1 {
		e.Errorf("roots of one layer: %v", roots)
	}
	e.wants(e.d.Put(ctx(), "c"), drivers.ErrInvalid)
	at := &place{root: e.get("c")}
	names, err := os.ReadDir(at.root)
	e.put("c")
	e.must(err)
	if n := slices.IndexFunc(names, func(d os.DirEntry) bool { return d.Name() == "lost+found" }); n >= 0 {
		names = slices.Delete(names, n, n+1)
	}
	if want := workers + 4; len(names) != want {
		e.Errorf("%d names in the root, want %d: %v", len(names), want, names)
	}
}

// caseConcurrentCreate has all workers make, and then remove, the same layer.
func caseConcurrentCreate(e *env) {
	e.image("base", "", baseSteps()...)
	var mu sync.Mutex
	made := 0
	e.must(atOnce(func(int) error {
		err := e.d.CreateReadWrite(ctx(), "c", "base", nil)
		if err == nil {
			mu.Lock()
			made++
			mu.Unlock()
		} else if errors.Is(err, drivers.ErrExists) {
			return nil
		}
		return err
	}))
	if made != 1 {
		e.Errorf("the layer was made %d times", made)
	}
	e.check("c", checkBase()...)
	e.must(atOnce(func(int) error { return e.d.Remove(ctx(), "c") }))
	e.exists("c", false)
}

// caseConcurrentDiff commits a container in which files and directories come, go and become others all the time. What is not
// touched is in each difference.
func caseConcurrentDiff(e *env) {
	e.image("base", "", append(baseSteps(), dir("old", 0o755), file("old/a", "a", 0o644), file("old/b", "b", 0o644))...)
	e.writable("c", "base")
	at := &place{root: e.get("c")}
	e.must(at.do([]step{dir("w", 0o755), file("w/stays", "s", 0o644), file("a file", "new data", 0o644)}))
	end, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- at.churn(end) }()
	for i := range concurrentDiffs {
		if _, err := drivers.DifferOf(e.d).Changes(ctx(), "c", "base"); err != nil {
			e.Errorf("changes: %v", err)
		}
		if _, err := drivers.DifferOf(e.d).DiffSize(ctx(), "c", "base"); err != nil {
			e.Errorf("size: %v", err)
		}
		id := fmt.Sprintf("made%d", i)
		e.must(e.d.Create(ctx(), id, "base", nil))
		e.copyDiff("c", "base", id)
		e.check(id, holds("w/stays", "s"), holds("a file", "new data"), holds("etc/passwd", "root"))
		e.must(e.d.Remove(ctx(), id))
	}
	close(end)
	e.must(<-ended)
	e.put("c")
}

const concurrentDiffs = 12

// churn changes what is in a container until end is closed.
func (at *place) churn(end <-chan struct{}) error {
	for i := 0; ; i++ {
		select {
		case <-end:
			return nil
		default:
		}
		t := fmt.Sprintf("w/t%d", i%4)
		err := at.do([]step{
			dir(t, 0o755), file(t+"/f", "content", 0o644), dir(t+"/sub", 0o700), link(t+"/f", t+"/sub/g"),
			remove(t + "/f"), remove(t), file(t, "no directory", 0o644), remove(t), symlink("nowhere", t), remove(t),
			file("old/a", "changed", 0o644), file("old/new", "b", 0o644), rename("old/new", "old/b"), remove("old/a"),
			remove("old"), file("old", "no directory", 0o644), remove("old"), dir("old", 0o755),
		})
		if err != nil {
			return err
		}
	}
}
