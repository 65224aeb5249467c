package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"plyfs/fs/mountopt"
)

// standbyEnv holds the descriptor of a socket over which this process, started in advance, gets its command line, and over
// which its verdict goes back. The start of a program takes longer than a mount; the graph driver has it done before
// (drivers/plyfs).
const standbyEnv = mountopt.StandbyEnv

// maxOrder bounds a command line; the kernel's own bound on one argument is less.
const maxOrder = 4 << 20

// standBy returns the command line of this process: args, or, if it was started in advance, the one that it waits for here.
// wanted is false when whoever would have sent one is gone.
func standBy(args []string) (order []string, wanted bool, err error) {
	fd, ok := standbyFD()
	if !ok {
		return args, true, nil
	}
	if err := os.Unsetenv(standbyEnv); err != nil {
		return nil, false, err
	}
	unix.CloseOnExec(fd)
	order, err = receiveOrder(fdReader(fd))
	if errors.Is(err, io.EOF) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("wait for a mount to serve: %w", err)
	}
	return order, true, os.Setenv(verdictEnv, strconv.Itoa(fd))
}

// standbyFD is the descriptor that the variable names, if there is one.
func standbyFD() (fd int, ok bool) {
	fd, err := strconv.Atoi(os.Getenv(standbyEnv))
	return fd, err == nil && fd >= 3
}

// receiveOrder reads a command line. The error is io.EOF if the other end closed before it sent any.
func receiveOrder(r io.Reader) ([]string, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(length[:])
	if n > maxOrder {
		return nil, fmt.Errorf("command line of %d bytes: %w", n, unix.E2BIG)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("command line: %w", noEOF(err))
	}
	var order []string
	if err := json.Unmarshal(b, &order); err != nil {
		return nil, fmt.Errorf("command line: %w", err)
	}
	if len(order) == 0 {
		return nil, fmt.Errorf("command line without a name: %w", unix.EINVAL)
	}
	return order, nil
}

// noEOF makes the end of a message that began no end of the stream.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// fdReader reads from a descriptor that it does not own, without the runtime's poller.
type fdReader int

func (fd fdReader) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(fd), p)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, err
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
}
