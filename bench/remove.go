package bench

import (
	"context"

	"golang.org/x/sys/unix"
)

// removeWorkloads remove files and trees of the upper and of a lower layer.
func removeWorkloads() []Workload {
	return []Workload{
		{
			Name: "unlink-upper", Doc: "unlink of 20,000 files made before in the same mount", Fixture: emptyFixture(),
			Run: func(_ context.Context, e *Env) error {
				t := newTree(e.N(walkFiles))
				if err := t.makeDirs(e.Root); err != nil {
					return err
				}
				if err := t.create(e.Root); err != nil {
					return err
				}
				return measureUnlink(e, t)
			},
		},
		{
			Name: "unlink-lower", Doc: "unlink of 10,000 lower files", Fixture: lowerFixture(),
			Run: func(_ context.Context, e *Env) error { return measureUnlink(e, e.Tree) },
		},
		{
			Name: "rm-upper", Doc: "rm -rf of an unpacked archive of 20,000 files", Fixture: archiveFixture(),
			Run: func(_ context.Context, e *Env) error {
				data, err := loadArchive(e)
				if err != nil {
					return err
				}
				if err := untar(e.Root, data); err != nil {
					return err
				}
				return measureRemoveAll(e)
			},
		},
		{
			Name: "rm-lower", Doc: "rm -rf of 20,000 files in 200 directories of one lower layer", Fixture: treeFixture(1),
			Run: func(_ context.Context, e *Env) error { return measureRemoveAll(e) },
		},
	}
}

func measureUnlink(e *Env, t Tree) error {
	names := t.paths(t.Files)
	e.Ops(len(names))
	err := e.Measure(func() error {
		return each(names, func(name string) error {
			if err := unix.Unlinkat(e.Root, name, 0); err != nil {
				return opError("unlink", name, err)
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	return expectFiles(e.Root, 0)
}

func measureRemoveAll(e *Env) error {
	before, err := walk(e.Root, ReaddirOnly)
	if err != nil {
		return err
	}
	if err := expect("files before", before.files, e.Tree.Files); err != nil {
		return err
	}
	e.Ops(before.files + before.dirs)
	buf := make([]byte, getdentsSize)
	if err := e.Measure(func() error { return removeAll(e.Root, ".", buf) }); err != nil {
		return err
	}
	after, err := walk(e.Root, ReaddirOnly)
	if err != nil {
		return err
	}
	return expect("what is left", after, counts{})
}
