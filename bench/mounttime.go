package bench

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

const mountRounds = 5

// mountWorkloads measure mount and unmount, by the command that container engines call: it returns when the mount
// serves and leaves its server in the background.
func mountWorkloads() []Workload {
	var out []Workload
	for _, layers := range []int{1, 32, 100} {
		out = append(out, Workload{
			Name:    fmt.Sprintf("mount-%d", layers),
			Doc:     fmt.Sprintf("5 times mount, stat of the root, unmount; %d layers", layers),
			Fixture: treeFixture(layers), Mounting: Unmounted, Run: measureMount,
		})
	}
	return out
}

func measureMount(ctx context.Context, e *Env) error {
	e.Ops(mountRounds)
	var st unix.Stat_t
	err := e.Measure(func() error {
		for range mountRounds {
			if err := e.Mount(ctx, e.Layout); err != nil {
				return err
			}
			err := unix.Lstat(e.Dir+"/"+e.Tree.dirOf(0), &st)
			if uerr := e.Unmount(ctx, e.Layout); uerr != nil {
				return uerr
			}
			if err != nil {
				return opError("stat", e.Tree.dirOf(0), err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return e.Reap(ctx)
}
