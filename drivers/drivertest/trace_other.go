//go:build !amd64

package drivertest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// systemCall returns number and third argument of the system call that a traced thread is about to make.
func systemCall(tid int) (nr int64, third uint64, err error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/syscall")
	if err != nil {
		return 0, 0, err
	}
	f := strings.Fields(string(text))
	if len(f) < 4 {
		return 0, 0, fmt.Errorf("system call of thread %d: %q", tid, text)
	}
	if nr, err = strconv.ParseInt(f[0], 10, 64); err != nil {
		return 0, 0, err
	}
	third, err = strconv.ParseUint(f[3], 0, 64)
	return nr, third, err
}
