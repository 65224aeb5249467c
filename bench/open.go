package bench

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// openWorkloads read 20,000 small files through open, read and close.
func openWorkloads() []Workload {
	f := treeFixture(32)
	return []Workload{
		{
			Name: "open-cold", Doc: "open, read, close of 20,000 files of 4 KiB, caches dropped, 32 layers", Fixture: f, Caches: BackingDropped,
			Run: func(_ context.Context, e *Env) error { return measureOpens(e, e.Tree.paths(e.Tree.Files), 0, 1) },
		},
		{
			Name: "open-first", Doc: "open, read, close of 20,000 files of 4 KiB in a fresh mount, 32 layers", Fixture: f,
			Run: func(_ context.Context, e *Env) error { return measureOpens(e, e.Tree.paths(e.Tree.Files), 0, 1) },
		},
		{
			Name: "open-hot", Doc: "the same 20,000 files again", Fixture: f,
			Run: func(_ context.Context, e *Env) error { return measureOpens(e, e.Tree.paths(e.Tree.Files), 1, 1) },
		},
	}
}

// openReadClose reads one file of a known size into buf.
func openReadClose(root int, name string, buf []byte, size int) error {
	fd, err := unix.Openat(root, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return opError("open", name, err)
	}
	n, err := unix.Read(fd, buf)
	unix.Close(fd)
	if err != nil {
		return opError("read", name, err)
	}
	if n != size {
		return fmt.Errorf("verify: read %s: got %d bytes, want %d", name, n, size)
	}
	return nil
}

// measureOpens measures a number of rounds of open-read-close of all names, after a number of equal rounds.
func measureOpens(e *Env, names []string, before, rounds int) error {
	buf := make([]byte, 2*e.Tree.Size)
	run := func(rounds int) error {
		for range rounds {
			for _, name := range names {
				if err := openReadClose(e.Root, name, buf, e.Tree.Size); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := run(before); err != nil {
		return err
	}
	e.Ops(rounds * len(names))
	if err := e.Measure(func() error { return run(rounds) }); err != nil {
		return err
	}
	return checkPage(buf, 0)
}

// parallelWorkloads have four processes at work at once, each on files of its own.
func parallelWorkloads() []Workload {
	const processes = 4
	return []Workload{
		{
			Name: "parallel-open", Doc: "four processes: each opens, reads, closes its 5,000 known files four times",
			Fixture: treeFixture(32), Workers: processes,
			Run: func(_ context.Context, e *Env) error {
				n := max(1, e.Tree.Files/processes)
				names := e.Tree.paths(e.Tree.Files)[e.Worker*n : (e.Worker+1)*n]
				return measureOpens(e, names, 1, 4)
			},
		},
		{
			Name: "parallel-create", Doc: "four processes: each creates and writes 5,000 files of 4 KiB in directories of its own",
			Fixture: emptyFixture(), Workers: processes,
			Run: func(_ context.Context, e *Env) error {
				dir := fmt.Sprintf("p%d", e.Worker)
				if err := unix.Mkdirat(e.Root, dir, 0o755); err != nil {
					return opError("mkdir", dir, err)
				}
				root, err := unix.Openat(e.Root, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
				if err != nil {
					return opError("open", dir, err)
				}
				defer unix.Close(root)
				return measureCreate(e, root, newTree(e.N(walkFiles/processes)))
			},
		},
	}
}
