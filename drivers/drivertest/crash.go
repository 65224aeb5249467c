package drivertest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"plyfs/drivers"
	"plyfs/internal/testenv"
)

func crashCases() []aCase {
	return []aCase{{"Killed", caseKilled}}
}

// envChild tells a process of this test binary that it is to be killed, and where the store is.
const envChild = "PLYFS_DRIVERTEST_CHILD"

// Main is testenv.Main for tests that run the suite: TestMain calls it.
func Main(m *testing.M, o testenv.Options) int {
	if os.Getenv(envChild) != "" {
		// Already in the namespaces of the process that will kill it.
		return m.Run()
	}
	return testenv.Main(m, o)
}

// child does the deed if this process was started to be killed.
func child(t *testing.T, s Suite) bool {
	base := os.Getenv(envChild)
	if base == "" {
		return false
	}
	d, err := s.Factory.Open(ctx(), s.options(base))
	if err == nil {
		err = errors.Join(d.Cleanup(ctx()), deed(d, os.Stdout), d.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return true
}

// The layers of the deed, and what is said of them when they are as they should be.
const (
	killedImage     = "image"     // Create, ApplyDiff, Sync
	killedChild     = "child"     // Create over the image, ApplyDiff with a whiteout
	killedContainer = "container" // CreateReadWrite, Get, write, Put
	killedGone      = "gone"      // CreateReadWrite, Remove
)

// deed uses a driver, and says what is done. The layers of the steps that were said to be done must be there
// after a kill at any moment.
func deed(d drivers.Driver, said io.Writer) error {
	differ := drivers.DifferOf(d)
	apply := func(id string, members ...member) error {
		var b bytes.Buffer
		if err := writeArchive(&b, members); err != nil {
			return err
		}
		_, err := differ.ApplyDiff(ctx(), id, &b, nil)
		return err
	}
	for _, s := range []struct {
		name string
		do   func() error
	}{
		{"create image", func() error { return d.Create(ctx(), killedImage, "", nil) }},
		{"apply image", func() error {
			return apply(killedImage, member{name: "d/"}, member{name: "d/f", content: "f"}, member{name: "big", size: 300_000},
				member{name: "last"})
		}},
		{"create child", func() error { return d.Create(ctx(), killedChild, killedImage, nil) }},
		{"apply child", func() error {
			return apply(killedChild, member{name: "d/f", gone: true}, member{name: "g", content: "g"})
		}},
		{"sync", func() error { return d.Sync(ctx(), killedImage, killedChild) }},
		{"create container", func() error { return d.CreateReadWrite(ctx(), killedContainer, killedChild, nil) }},
		{"write", func() error { return writeIn(d, killedContainer) }},
		{"create gone", func() error { return d.CreateReadWrite(ctx(), killedGone, killedChild, nil) }},
		{"remove gone", func() error { return d.Remove(ctx(), killedGone) }},
	} {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		fmt.Fprintln(said, donePrefix+s.name)
	}
	return nil
}

const donePrefix = "done: "

func writeIn(d drivers.Driver, id string) error {
	root, err := d.Get(ctx(), id, nil)
	if err != nil {
		return err
	}
	err = (&place{root: root}).do([]step{file("c", "c", 0o644), appendTo("g", "+c")})
	return errors.Join(err, d.Put(ctx(), id))
}

// killPoints is how many of the deed's system calls are killed at; the long form does so at each.
const killPoints = 12

// caseKilled kills a process that uses the driver at its i-th system call that changes something, for i all over the
// deed. After each, the layers are old or new, everything that was done is there, and the deed can be done anew.
func caseKilled(e *env) {
	e.must(e.d.Close())
	calls, done, err := killAt(e, -1)
	e.open()
	e.must(err)
	if calls < killPoints {
		e.Fatalf("the deed has only %d calls", calls)
	}
	if len(done) != 9 {
		e.Fatalf("done: %v", done)
	}
	e.checkDeed(done)
	e.removeAll()
	step := max(1, calls/killPoints)
	if Long() {
		step = 1
	}
	e.Logf("%d calls, of which each %dth is killed at", calls, step)
	for i := step / 2; i < calls; i += step {
		e.must(e.d.Close())
		_, done, err := killAt(e, i)
		e.open()
		if err != nil {
			e.Fatalf("killed at call %d: %v", i, err)
		}
		e.checkDeed(done)
		e.removeAll()
		if e.Failed() {
			e.Fatalf("killed at call %d of %d, after %v", i, calls, done)
		}
	}
	e.must(deed(e.d, io.Discard))
}

// checkDeed checks what a kill left, of which the given steps were done.
func (e *env) checkDeed(done []string) {
	e.Helper()
	was := func(step string) bool { return slices.Contains(done, step) }
	ids, err := e.ids()
	e.must(err)
	for _, id := range ids {
		// A mount that outlived the process still counts.
		for e.d.Put(ctx(), id) == nil {
			continue
		}
		if !slices.Contains([]string{killedImage, killedChild, killedContainer, killedGone}, id) {
			e.Errorf("layer %s, which nobody made", id)
		}
	}
	wholeImage := []step{holds("d/f", "f"), holds("last", "")}
	wholeChild := []step{absent("d/f"), holds("g", "g"), holds("last", "")}
	if was("apply image") {
		e.check(killedImage, wholeImage...)
	}
	if was("apply child") {
		e.check(killedChild, wholeChild...)
	}
	if was("create container") {
		e.check(killedContainer, absent("d/f"), holds("last", ""))
	}
	if was("write") {
		e.check(killedContainer, holds("c", "c"), holds("g", "g+c"))
	}
	if was("remove gone") && slices.Contains(ids, killedGone) {
		e.Error("the layer that was removed is back")
	}
	e.checkHalf(ids, killedImage, was("apply image"), wholeImage)
	e.checkHalf(ids, killedChild, was("apply child"), wholeChild)
}

// checkHalf looks at an image layer of which ApplyDiff was not said to have ended: it is not there, or as it was made,
// or whole.
func (e *env) checkHalf(ids []string, id string, done bool, whole []step) {
	e.Helper()
	if done || !slices.Contains(ids, id) {
		return
	}
	at := &place{root: e.get(id)}
	defer e.put(id)
	if at.do(whole) == nil {
		return
	}
	fresh := []step{absent("g"), absent("d"), absent("last"), absent("big")}
	if id == killedChild {
		fresh = []step{absent("g"), holds("d/f", "f"), holds("last", "")}
	}
	if err := at.do(fresh); err != nil {
		e.Errorf("half of layer %s is there: %v", id, err)
	}
}

// readDone collects the steps that a child said were done.
func readDone(r io.Reader) (done []string, rest string) {
	var other strings.Builder
	for sc := bufio.NewScanner(r); sc.Scan(); {
		if s, ok := strings.CutPrefix(sc.Text(), donePrefix); ok {
			done = append(done, s)
			continue
		}
		other.WriteString(sc.Text() + "\n")
	}
	return done, other.String()
}
