package sys

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// What ioprio_set(2) takes, of include/uapi/linux/ioprio.h.
const (
	ioprioWhoProcess = 1
	ioprioIdle       = 3 << 13
)

// lowestNice is the lowest priority of setpriority(2).
const lowestNice = 19

// Idle makes the process run only where nobody else wants the processor or the disk. Threads inherit it, so it goes on
// until it finds no new one. An error names what the kernel refused; what it did not refuse is in force.
func Idle() error {
	seen := map[int]bool{}
	var first error
	for more := true; more; {
		more = false
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("idle priority: %w", err)
		}
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err != nil || seen[tid] {
				continue
			}
			seen[tid], more = true, true
			// A thread that has ended needs nothing.
			if err := idleThread(tid); first == nil && !errors.Is(err, unix.ESRCH) {
				first = err
			}
		}
	}
	return first
}

func idleThread(tid int) error {
	var errs []error
	if err := unix.Setpriority(unix.PRIO_PROCESS, tid, lowestNice); err != nil {
		errs = append(errs, fmt.Errorf("setpriority: %w", err))
	}
	if err := unix.SchedSetAttr(tid, &unix.SchedAttr{Policy: unix.SCHED_IDLE, Nice: lowestNice}, 0); err != nil {
		errs = append(errs, fmt.Errorf("sched_setattr: %w", err))
	}
	if _, _, e := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, uintptr(tid), ioprioIdle); e != 0 {
		errs = append(errs, fmt.Errorf("ioprio_set: %w", e))
	}
	return errors.Join(errs...)
}

// EndWithParent has the kernel send SIGTERM to this process when the thread that started it ends.
func EndWithParent() error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_SET_PDEATHSIG: %w", err)
	}
	return nil
}
