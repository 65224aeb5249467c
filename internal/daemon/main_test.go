package daemon_test

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"plyfs/internal/daemon"
	"plyfs/internal/testenv"
)

// envChild makes the test binary the process that a test needs: one to which systemd passed a socket.
const envChild = "PLYFS_TEST_DAEMON_ADDRESS"

func TestMain(m *testing.M) {
	if address := os.Getenv(envChild); address != "" {
		os.Exit(serveOnce(address))
	}
	flag.Parse()
	if flag.Lookup("test.fuzz").Value.String() != "" {
		// A fuzzing process and its workers must see the same directories.
		os.Exit(m.Run())
	}
	os.Exit(testenv.Main(m, testenv.Options{}))
}

// serveOnce listens and answers one connection with the inode of its listening socket.
func serveOnce(address string) int {
	// systemd knows the process before it starts; a test does not.
	if err := os.Setenv("LISTEN_PID", fmt.Sprint(os.Getpid())); err != nil {
		return fail(err)
	}
	l, err := daemon.Listen(testContext(), address)
	if err != nil {
		return fail(err)
	}
	conn, err := l.Accept()
	if err != nil {
		return fail(err)
	}
	if _, err := fmt.Fprint(conn, "activated"); err != nil {
		return fail(err)
	}
	if err := conn.Close(); err != nil {
		return fail(err)
	}
	if err := l.Close(); err != nil {
		return fail(err)
	}
	return 0
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}
