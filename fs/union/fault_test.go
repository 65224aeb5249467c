package union_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/fs/union/uniontest"
	"plyfs/fs/union/uniontest/direct"
	"plyfs/internal/fingerprint"
	"plyfs/internal/sys"
	"plyfs/internal/testenv"
)

// faultFields are what an operation that failed may not have changed by half. Times of directories may move when
// something was staged and taken back.
const faultFields = fingerprint.Default &^ fingerprint.Mtime

// mostFaults bounds the search for an operation that never succeeds.
const mostFaults = 200

// makeLayers makes fresh layers for one attempt.
func makeLayers(t testing.TB) uniontest.Spec {
	t.Helper()
	base := testenv.Scratch(t)
	s := uniontest.Spec{Base: base, Upper: filepath.Join(base, "upper"), Work: filepath.Join(base, "work")}
	for i, l := range faultLayers() {
		dir := filepath.Join(base, "lower"+strconv.Itoa(i))
		s.Lowers = append(s.Lowers, dir)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := l.Apply(&uniontest.LayerDir{Root: dir, Prefix: "trusted."}); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{s.Upper, s.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func snapshot(t testing.TB, when string, tree uniontest.Tree) *fingerprint.Tree {
	t.Helper()
	fp, err := uniontest.Snapshot(tree)
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	return fp
}

func openEngine(t testing.TB, e direct.Engine, s uniontest.Spec) *direct.Tree {
	t.Helper()
	tree, err := e.Tree(s)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// setUp makes the layers of an operation, does what comes before it, and returns the state then.
func setUp(t testing.TB, o op) (uniontest.Spec, *fingerprint.Tree) {
	t.Helper()
	s := makeLayers(t)
	tree := openEngine(t, direct.Engine{}, s)
	if o.before != nil {
		if err := o.before(tree); err != nil {
			t.Fatalf("before: %v", err)
		}
	}
	old := snapshot(t, "at first", tree)
	if err := tree.Close(); err != nil {
		t.Fatal(err)
	}
	// As a first mount finds it: the staging directory is made by the operation.
	if err := os.Remove(filepath.Join(s.Work, cow.StageDir)); err != nil {
		t.Fatal(err)
	}
	return s, old
}

// outcome returns the state after the undisturbed operation.
func outcome(t testing.TB, o op) *fingerprint.Tree {
	t.Helper()
	s, _ := setUp(t, o)
	tree := openEngine(t, direct.Engine{}, s)
	if err := o.do(tree); err != nil {
		t.Fatal(err)
	}
	after := snapshot(t, "undisturbed", tree)
	if err := tree.Close(); err != nil {
		t.Fatal(err)
	}
	checkOpen(t, s, "undisturbed", after, after)
	return after
}

// checkOpen opens the layers and checks that they show one of two states, and that nothing staged remains after a
// clean end. It returns which of them it is.
func checkOpen(t testing.TB, s uniontest.Spec, when string, before, after *fingerprint.Tree, also ...*fingerprint.Tree) {
	t.Helper()
	tree := openEngine(t, direct.Engine{}, s)
	oneOf(t, when, snapshot(t, when, tree), before, after, also...)
	if err := tree.Close(); err != nil {
		t.Errorf("%s: close: %v", when, err)
	}
	names, err := os.ReadDir(filepath.Join(s.Work, "work"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, n := range names {
		t.Errorf("%s: left in the work directory: %s", when, n.Name())
	}
}

func oneOf(t testing.TB, when string, got, before, after *fingerprint.Tree, also ...*fingerprint.Tree) {
	t.Helper()
	a := fingerprint.Diff(before, got, faultFields)
	if a == nil {
		return
	}
	for _, third := range also {
		if fingerprint.Diff(third, got, faultFields) == nil {
			return
		}
	}
	if b := fingerprint.Diff(after, got, faultFields); b != nil {
		t.Errorf("%s: neither the old state nor the new one; from the old one:\n%s\nfrom the new one:\n%s", when,
			fingerprint.Format(a, 8), fingerprint.Format(b, 8))
	}
}

// TestFailAtEveryCall fails each mutating operation at its first, second and so on changing system call, until it
// succeeds: at once and after opening anew the tree is the old one or the new one.
func TestFailAtEveryCall(t *testing.T) {
	eachOp(t, func(t *testing.T, o op, plain bool) {
		after := outcome(t, o)
		for i := 1; !failAt(t, o, plain, i, after); i++ {
			if t.Failed() || i > mostFaults {
				t.Fatalf("stopped at call %d", i)
			}
		}
	})
}

// eachOp tests each operation, and those that plain renames do in more steps with them, too.
func eachOp(t *testing.T, test func(t *testing.T, o op, plain bool)) {
	for _, o := range faultOps() {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			test(t, o, false)
		})
		if o.stepwise() {
			t.Run(o.name+"/plain", func(t *testing.T) {
				t.Parallel()
				test(t, o, true)
			})
		}
	}
}

// failAt does the operation with its i-th call failing, and reports whether it had fewer.
func failAt(t *testing.T, o op, plain bool, i int, after *fingerprint.Tree) (done bool) {
	t.Helper()
	s, before := setUp(t, o)
	var count atomic.Int64
	var armed atomic.Bool
	var failed atomic.Value
	hook := func(call string) error {
		if armed.Load() && count.Add(1) == int64(i) {
			failed.Store(call)
			return unix.EIO
		}
		return nil
	}
	tree := openEngine(t, direct.Engine{Mutator: &sys.Mutator{Hook: hook, NoRenameFlags: plain}}, s)
	armed.Store(true)
	err := o.do(tree)
	armed.Store(false)
	call, hit := failed.Load().(string)
	if !hit {
		if err != nil {
			t.Errorf("without a fault: %v", err)
		}
		if cerr := tree.Close(); cerr != nil {
			t.Error(cerr)
		}
		return true
	}
	when := fmt.Sprintf("with call %d (%s) failing (result: %v)", i, call, err)
	live := snapshot(t, when, tree)
	if err == nil {
		// The fault was survived: the operation must have happened.
		oneOf(t, when, live, after, after)
		before = after
	} else {
		oneOf(t, when+", before a remount", live, before, after)
	}
	if err := tree.Close(); err != nil {
		t.Errorf("%s: close: %v", when, err)
	}
	checkOpen(t, s, when, before, after)
	return false
}

// TestPanicAtEveryCall has each mutating operation panic at its first, second and so on changing system call: no lock is lost, and the
// same operation, which wants the same files, waits for nothing.
func TestPanicAtEveryCall(t *testing.T) {
	eachOp(t, func(t *testing.T, o op, plain bool) {
		for i := 1; !panicAt(t, o, plain, i); i++ {
			if t.Failed() || i > mostFaults {
				t.Fatalf("stopped at call %d", i)
			}
		}
	})
}

// panicAt does the operation with a panic at its i-th call, and reports whether it had fewer.
func panicAt(t *testing.T, o op, plain bool, i int) (done bool) {
	t.Helper()
	s, _ := setUp(t, o)
	var count atomic.Int64
	var armed atomic.Bool
	hook := func(call string) error {
		if armed.Load() && count.Add(1) == int64(i) {
			panic(call)
		}
		return nil
	}
	tree := openEngine(t, direct.Engine{Mutator: &sys.Mutator{Hook: hook, NoRenameFlags: plain}}, s)
	armed.Store(true)
	call := panics(func() { _ = o.do(tree) }) // it may be refused, too
	armed.Store(false)
	if call == nil {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
		return true
	}
	free := make(chan struct{})
	go func() {
		defer close(free)
		tree.Union().TakeLocks()
		_ = o.do(tree) // half of it may be done
	}()
	select {
	case <-free:
	case <-time.After(10 * time.Second):
		t.Fatalf("a panic in call %d (%v) keeps a lock", i, call)
	}
	u := tree.Union()
	tree.Abandon() // it has lost count of its nodes
	if err := u.Close(); err != nil {
		t.Errorf("after a panic in call %d (%v): %v", i, call, err)
	}
	return false
}

// panics returns what f panics with, nil if it does not.
func panics(f func()) (reason any) {
	defer func() { reason = recover() }()
	f()
	return nil
}

// The environment that makes this binary a child of TestKillAtEveryCall.
const envKill = "PLYFS_TEST_KILL"

// killSpec is what the child works on: the operation, the call at which it dies, and where.
type killSpec struct {
	op    string
	plain bool
	at    int
	spec  uniontest.Spec
}

func (k killSpec) String() string {
	return strings.Join(append([]string{k.op, strconv.FormatBool(k.plain), strconv.Itoa(k.at), k.spec.Upper, k.spec.Work}, k.spec.Lowers...), "\n")
}

func parseKillSpec(v string) (k killSpec, err error) {
	f := strings.Split(v, "\n")
	if len(f) < 6 {
		return k, fmt.Errorf("%s: %d fields", envKill, len(f))
	}
	plain, perr := strconv.ParseBool(f[1])
	at, err := strconv.Atoi(f[2])
	return killSpec{op: f[0], plain: plain, at: at, spec: uniontest.Spec{Upper: f[3], Work: f[4], Lowers: f[5:]}}, errors.Join(perr, err)
}

// childMain does one operation and dies of SIGKILL before its i-th changing system call, if this process was started for
// that; else it returns.
func childMain() {
	v := os.Getenv(envKill)
	if v == "" {
		return
	}
	unix.Umask(0)
	if err := killChild(v); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func killChild(v string) error {
	k, err := parseKillSpec(v)
	if err != nil {
		return err
	}
	var count atomic.Int64
	var armed atomic.Bool
	hook := func(string) error {
		if armed.Load() && count.Add(1) == int64(k.at) {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
		return nil
	}
	tree, err := direct.Engine{Mutator: &sys.Mutator{Hook: hook, NoRenameFlags: k.plain}}.Tree(k.spec)
	if err != nil {
		return err
	}
	for _, o := range faultOps() {
		if o.name == k.op {
			armed.Store(true)
			// The clean end belongs to it: it syncs and removes marks.
			return errors.Join(o.do(tree), tree.Close())
		}
	}
	return fmt.Errorf("no operation %q", k.op)
}

// TestKillAtEveryCall kills a process before the first, second and so on changing system call of each operation and of
// the clean end after it: what a new process then shows is the old tree or the new one.
func TestKillAtEveryCall(t *testing.T) {
	eachOp(t, func(t *testing.T, o op, plain bool) {
		after := outcome(t, o)
		var also []*fingerprint.Tree
		if o.name == "rename-whiteout" {
			// The one exception, see docs/semantics.md: a kill may leave the rename without its whiteout.
			moved := o
			moved.do = rename("f", "d/n", 0)
			also = append(also, outcome(t, moved))
		}
		for i := 1; !killAt(t, o, plain, i, after, also...); i++ {
			if t.Failed() || i > mostFaults {
				t.Fatalf("stopped at call %d", i)
			}
		}
	})
}

func killAt(t *testing.T, o op, plain bool, i int, after *fingerprint.Tree, also ...*fingerprint.Tree) (done bool) {
	t.Helper()
	s, before := setUp(t, o)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envKill+"="+killSpec{op: o.name, plain: plain, at: i, spec: s}.String())
	out, err := cmd.CombinedOutput()
	if err == nil {
		checkOpen(t, s, "undisturbed", after, after)
		return true
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("child: %v: %s", err, out)
	}
	checkOpen(t, s, fmt.Sprintf("killed before call %d", i), before, after, also...)
	return false
}
