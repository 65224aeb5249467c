package bench

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// walkPhase is what is known when a walk is measured.
type walkPhase struct {
	name   string
	caches CacheState
	before int // walks before the measured one
}

// walkWorkloads are walks of 20,000 files over 1, 32 and 100 merged layers, by readdir alone and with a stat of every
// entry; cold, first and warm. The first walk of most layers comes next to that of one: the two are compared.
func walkWorkloads() []Workload {
	first := walkPhase{"first", BackingCached, 0}
	phases := []walkPhase{{"cold", BackingDropped, 0}, first, {"warm", BackingCached, 2}}
	var out []Workload
	for _, layers := range []int{1, 32, 100} {
		for _, mode := range []StatMode{StatEach, ReaddirOnly} {
			for _, phase := range phases {
				out = append(out, walkWorkload(layers, mode, phase))
				if layers == 1 && mode == StatEach && phase.name == first.name {
					out = append(out, walkWorkload(mostLayers, mode, phase), imageWorkload())
				}
			}
		}
	}
	return out
}

// imageWorkload is the first walk of most layers, where each adds a part of the tree.
func imageWorkload() Workload {
	w := walkWorkload(mostLayers, StatEach, walkPhase{"first", BackingCached, 0})
	w.Name = fmt.Sprintf("walk-first-image-%d", mostLayers)
	w.Doc = fmt.Sprintf("the same walk, %d layers of which each holds 40 consecutive files and just their directories", mostLayers)
	w.Fixture = imageFixture(mostLayers)
	return w
}

func walkWorkload(layers int, mode StatMode, phase walkPhase) Workload {
	name, doc := "stat", "readdir and stat of every entry"
	if mode == ReaddirOnly {
		name, doc = "readdir", "readdir alone"
	}
	return Workload{
		Name:    fmt.Sprintf("walk-%s-%s-%d", phase.name, name, layers),
		Doc:     fmt.Sprintf("%s walk of 20,000 files in 200 directories, %s, %d merged layers", phase.name, doc, layers),
		Fixture: treeFixture(layers),
		Caches:  phase.caches,
		Run: func(_ context.Context, e *Env) error {
			return measureWalk(e, mode, phase.before)
		},
	}
}

// measureWalk measures one walk after a number of equal ones.
func measureWalk(e *Env, mode StatMode, before int) error {
	for range before {
		if _, err := walk(e.Root, mode); err != nil {
			return err
		}
	}
	var c counts
	err := e.Measure(func() (err error) {
		c, err = walk(e.Root, mode)
		return err
	})
	if err != nil {
		return err
	}
	e.Ops(c.files + c.dirs)
	if err := expect("directories", c.dirs, len(e.Tree.dirs())); err != nil {
		return err
	}
	return expect("files", c.files, e.Tree.Files)
}

// lookupWorkloads are stats by path, of names that exist and of names that don't.
func lookupWorkloads() []Workload {
	f := treeFixture(32)
	return []Workload{
		{
			Name: "lookup-first-32", Doc: "stat of 20,000 paths in a fresh mount, 32 merged layers", Fixture: f,
			Run: func(_ context.Context, e *Env) error { return measureLookups(e, e.Tree.paths(e.Tree.Files), nil, 0) },
		},
		{
			Name: "lookup-warm-32", Doc: "stat of 20,000 paths known to the mount, 32 merged layers", Fixture: f,
			Run: func(_ context.Context, e *Env) error { return measureLookups(e, e.Tree.paths(e.Tree.Files), nil, 1) },
		},
		{
			Name: "absent-first-32", Doc: "stat of 20,000 absent names in one directory that 32 layers share", Fixture: f,
			Run: func(_ context.Context, e *Env) error { return measureLookups(e, absentNames(e), unix.ENOENT, 0) },
		},
		{
			Name: "absent-warm-32", Doc: "the same absent names again", Fixture: f,
			Run: func(_ context.Context, e *Env) error { return measureLookups(e, absentNames(e), unix.ENOENT, 1) },
		},
	}
}

// absentNames are names in the first directory that no layer has.
func absentNames(e *Env) []string {
	names := make([]string, e.N(walkFiles))
	for i := range names {
		names[i] = fmt.Sprintf("%s/absent%06d", e.Tree.dirOf(0), i)
	}
	return names
}

// measureLookups measures a stat of each name after a number of equal rounds. Each must end in want.
func measureLookups(e *Env, names []string, want error, before int) error {
	var st unix.Stat_t
	round := func() error {
		for _, name := range names {
			if err := unix.Fstatat(e.Root, name, &st, unix.AT_SYMLINK_NOFOLLOW); !errors.Is(err, want) {
				return fmt.Errorf("stat %s: got %w, want %w", name, err, want)
			}
		}
		return nil
	}
	for range before {
		if err := round(); err != nil {
			return err
		}
	}
	e.Ops(len(names))
	return e.Measure(round)
}
