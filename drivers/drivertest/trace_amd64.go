package drivertest

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// systemCall returns number and third argument of the system call that a traced thread is about to make. It asks for single
// registers: user-mode Linux gives no more.
func systemCall(tid int) (nr int64, third uint64, err error) {
	// Offsets in struct user_regs_struct.
	const rdx, origRax = 12 * 8, 15 * 8
	var word [8]byte
	if _, err := unix.PtracePeekUser(tid, origRax, word[:]); err != nil {
		return 0, 0, err
	}
	nr = int64(binary.LittleEndian.Uint64(word[:]))
	if _, err := unix.PtracePeekUser(tid, rdx, word[:]); err != nil {
		return 0, 0, err
	}
	return nr, binary.LittleEndian.Uint64(word[:]), nil
}
