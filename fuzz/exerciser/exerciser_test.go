package exerciser_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"plyfs/fs/union/uniontest"
	"plyfs/fs/union/uniontest/direct"
	"plyfs/fs/union/uniontest/mounted"
	"plyfs/fuzz/exerciser"
	"plyfs/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m, testenv.Options{Binary: true})) }

// The environment that asks for more: how long to go on (a duration, seconds by default), and from which seed.
const (
	envTime = "PLYFS_EXERCISE_TIME"
	envSeed = "PLYFS_EXERCISE_SEED"
)

func layers() []uniontest.Layer {
	return []uniontest.Layer{
		{
			uniontest.Reg("low/f", strings.Repeat("lower ", 5000)), uniontest.Reg("low/g", "g"), uniontest.Hard("low/g", "low/h"),
			uniontest.Reg("merged/x", "top"), uniontest.Sym("low/y", "nowhere"), uniontest.Fifo("z"), uniontest.Dirs("low/a", "b"),
			uniontest.Whiteout("merged/y"), uniontest.Reg("f", "file"), uniontest.Xattr("f", "user.x1", "v"),
		},
		{
			uniontest.Reg("merged/x", "bottom"), uniontest.Reg("merged/y", "gone"), uniontest.Reg("merged/b/f", "deep"),
			uniontest.Reg("merged/z", "z"), uniontest.Sparse("g", 250_000, "data", 0, 100_000, 200_000), uniontest.Reg("low/x", "x"),
		},
	}
}

// fresh makes layers and opens a tree over them.
func fresh(t *testing.T, f uniontest.Factory) (uniontest.Tree, error) {
	t.Helper()
	base := testenv.Scratch(t)
	s := uniontest.Spec{Base: base, Upper: filepath.Join(base, "upper"), Work: filepath.Join(base, "work")}
	prefix := "trusted."
	if f.Traits()&uniontest.Trusted == 0 {
		prefix = "user."
	}
	for i, l := range layers() {
		dir := filepath.Join(base, "lower"+strconv.Itoa(i))
		s.Lowers = append(s.Lowers, dir)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
		if err := l.Apply(&uniontest.LayerDir{Root: dir, Prefix: prefix}); err != nil {
			return nil, err
		}
	}
	for _, d := range []string{s.Upper, s.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	return f.Open(t, s)
}

// exercise runs sequences until the time is over.
func exercise(t *testing.T, f uniontest.Factory) {
	t.Helper()
	limit, seed := 3*time.Second, uint64(1)
	if v := os.Getenv(envTime); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			t.Fatalf("%s: %v", envTime, err)
		}
		limit, seed = d, uint64(time.Now().UnixNano())
	}
	if v := os.Getenv(envSeed); v != "" {
		s, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", envSeed, err)
		}
		seed = s
	}
	const length = 1500
	total := 0
	for end := time.Now().Add(limit); time.Now().Before(end); seed++ {
		ops := exerciser.Sequence(seed, length)
		tree, err := fresh(t, f)
		if err != nil {
			t.Fatal(err)
		}
		err = exerciser.Run(tree, ops)
		if err == nil {
			err = tree.Close()
		}
		if err != nil {
			report(t, f, seed, ops, err)
			return
		}
		total += length
	}
	t.Logf("%d operations in %v", total, limit)
}

// report prints the seed and the operations that matter.
func report(t *testing.T, f uniontest.Factory, seed uint64, ops []exerciser.Op, err error) {
	t.Helper()
	t.Errorf("%s with seed %d: %v", f.Name(), seed, err)
	short := exerciser.Shrink(ops, func() (uniontest.Tree, error) { return fresh(t, f) })
	var list strings.Builder
	for i, op := range short {
		fmt.Fprintf(&list, "%4d %s\n", i, op)
	}
	if tree, err := fresh(t, f); err == nil {
		t.Errorf("the shortest sequence that fails (%s=%d repeats it): %v\n%s", envSeed, seed, exerciser.Run(tree, short), list.String())
	}
}

// TestKernel proves the model on the oracle.
func TestKernel(t *testing.T) { exercise(t, mounted.Kernel{}) }

// TestEngine exercises the engine.
func TestEngine(t *testing.T) { exercise(t, direct.Engine{}) }

// TestNoopen exercises a mount in the data mode that sends no open.
func TestNoopen(t *testing.T) { exercise(t, mounted.Plyfs{Data: "noopen", Patience: 30 * time.Minute}) }

// TestPassthrough exercises a mount in the data mode in which the kernel reads and writes the layers' files.
func TestPassthrough(t *testing.T) {
	exercise(t, mounted.Plyfs{Data: "passthrough", Patience: 30 * time.Minute})
}
