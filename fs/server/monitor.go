package server

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// monitorSlack is by how much the kernel may delay the runtime's monitor, in nanoseconds.
const monitorSlack = 1e6

// quietMonitor lets the kernel wake the runtime's monitor thread once per millisecond instead of every 70 microseconds, for those ten
// milliseconds after the last request during which a reader that waits keeps its processor (cf. Go runtime/proc.go sysmon, retake).
// Of a few requests now and then, which is what starting a container is, the wake-ups take more of the machine than the requests: each
// interrupts whoever runs. The monitor is there for goroutines that wait while all processors are in system calls, of which there are
// spare ones; they may wait that long now.
//
// It may not be done without CAP_SYS_NICE, and then is not.
func quietMonitor() error {
	tid, err := monitorThread()
	if err != nil {
		return err
	}
	fd, err := unix.Open("/proc/"+strconv.Itoa(tid)+"/timerslack_ns", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, strconv.AppendInt(nil, monitorSlack, 10))
	_ = unix.Close(fd)
	return err
}

// monitorThread finds the thread that the runtime makes before all others (cf. runtime/proc.go main): the second, since the kernel lists
// threads in the order in which they were made (cf. Linux fs/proc/base.c next_tid).
func monitorThread() (int, error) {
	dir, err := os.Open("/proc/self/task")
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return 0, err
	}
	if len(names) < 2 {
		return 0, unix.ESRCH
	}
	return strconv.Atoi(names[1])
}
