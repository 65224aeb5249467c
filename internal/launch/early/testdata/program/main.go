// Command program is linked to start at early.Entry, and does as a child what its first argument says.
package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/internal/launch/early"
)

func main() {
	if early.Child() {
		child()
	}
	f, failed, err := early.Outcome()
	fmt.Printf("failed=%v verdict=%d error=%v", failed, f.Verdict, err)
	if failed {
		var rest [64]byte
		n, err := unix.Read(f.Rest, rest[:])
		_, werr := unix.Wait4(f.Pid, nil, 0, nil)
		fmt.Printf(" rest=%q %v wait=%v", rest[:max(n, 0)], err, werr)
	}
	// The child of a program that had its work handed back is gone.
	_, err = unix.Wait4(-1, nil, 0, nil)
	fmt.Printf(" children=%v\n", err)
}

func child() {
	switch os.Args[1] {
	case "serve":
		sid, err := unix.Getsid(0)
		fmt.Printf("leader=%v %v", sid == os.Getpid(), err)
		// The runtime's own are closed on exec, an inherited one is not.
		for fd := range early.Room + 1 {
			flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			if err == nil && (flags&unix.FD_CLOEXEC == 0 || fd == early.Report) {
				fmt.Printf(" %d:%d", fd, flags)
			}
		}
		status, err := os.ReadFile("/proc/self/status")
		_, table, _ := strings.Cut(string(status), "\nFDSize:\t")
		table, _, _ = strings.Cut(table, "\n")
		fmt.Printf(" table=%s %v\n", table, err)
		verdict(0, "")
	case "refuse":
		verdict(32, "no layer")
	case "back":
		early.HandBack()
	case "die":
	case "unheard":
		_ = unix.Kill(os.Getppid(), unix.SIGKILL)
		for {
			if _, err := unix.Write(early.Report, []byte{0}); err == unix.EPIPE {
				fmt.Println("nobody listens")
				os.Exit(0)
			}
		}
	}
	os.Exit(0)
}

func verdict(code byte, text string) {
	if _, err := unix.Write(early.Report, append([]byte{code}, text...)); err != nil {
		fmt.Println(err)
	}
}
