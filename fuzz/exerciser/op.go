package exerciser

import (
	"fmt"
	"math/rand/v2"
	"path"
)

// Kind is what an operation does.
type Kind int

// The kinds of operations. Those on handles use one of a few files that stay open over other operations.
const (
	Mkdir Kind = iota
	Create
	Symlink
	Mkfifo
	Link
	Unlink
	Rmdir
	Rename
	RenameNoReplace
	Exchange
	Chmod
	Chown
	Utimens
	Setxattr
	Removexattr
	Truncate
	Write
	Append
	Read
	Punch
	Allocate
	CopyRange
	MapWrite
	MapRead
	Fsync
	Tmpfile
	OpenHandle
	CloseHandle
	HandleWrite
	HandleRead
	HandleTruncate
	Stat
	List
	Remount
	kinds
)

func (k Kind) String() string {
	names := [...]string{
		"mkdir", "create", "symlink", "mkfifo", "link", "unlink", "rmdir", "rename", "rename-noreplace", "exchange", "chmod",
		"chown", "utimens", "setxattr", "removexattr", "truncate", "write", "append", "read", "punch", "allocate",
		"copy-range", "map-write", "map-read", "fsync", "tmpfile", "open-handle", "close-handle", "handle-write",
		"handle-read", "handle-truncate", "stat", "list", "remount",
	}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind %d", int(k))
}

// weight is how often a kind occurs in relation to the others.
func (k Kind) weight() int {
	switch k {
	case Remount:
		return 1
	case Write, Read, Rename, HandleWrite, HandleRead, Create:
		return 12
	case Unlink, Truncate, MapWrite, Link, Mkdir, Append, OpenHandle:
		return 8
	}
	return 5
}

// Op is one operation. Which fields count depends on the kind.
type Op struct {
	Kind   Kind
	A, B   string // paths
	Off, N int64  // range
	Seed   byte   // content, or an id or mode
	Handle int
}

func (o Op) String() string {
	return fmt.Sprintf("%s %s %s off=%d n=%d seed=%d handle=%d", o.Kind, o.A, o.B, o.Off, o.N, o.Seed, o.Handle)
}

// maxFile bounds the size of files; handles is how many files may be open at once.
const (
	maxFile = 300_000
	handles = 6
)

// Sequence returns n operations that follow from the seed. Names are few, so that operations meet.
func Sequence(seed uint64, n int) []Op {
	r := rand.New(rand.NewPCG(seed, 0x706c79))
	var table []Kind
	for k := Kind(0); k < kinds; k++ {
		for range k.weight() {
			table = append(table, k)
		}
	}
	ops := make([]Op, n)
	for i := range ops {
		ops[i] = Op{
			Kind: table[r.IntN(len(table))], A: randomPath(r), B: randomPath(r), Off: randomOffset(r), N: randomLength(r),
			Seed: byte(1 + r.IntN(250)), Handle: r.IntN(handles),
		}
	}
	return ops
}

func randomPath(r *rand.Rand) string {
	dirs, leaves := []string{"a", "b", "low", "merged"}, []string{"f", "g", "h", "x", "y", "z"}
	p := ""
	for range r.IntN(3) {
		p = path.Join(p, dirs[r.IntN(len(dirs))])
	}
	if r.IntN(5) == 0 {
		return path.Join(p, dirs[r.IntN(len(dirs))])
	}
	return path.Join(p, leaves[r.IntN(len(leaves))])
}

// randomOffset prefers the neighbourhood of page boundaries.
func randomOffset(r *rand.Rand) int64 {
	if r.IntN(3) == 0 {
		return int64(r.IntN(maxFile))
	}
	return max(0, int64(r.IntN(20))*4096+int64(r.IntN(5))-2)
}

func randomLength(r *rand.Rand) int64 {
	switch r.IntN(4) {
	case 0:
		return int64(1 + r.IntN(10))
	case 1:
		return 4096
	case 2:
		return int64(1 + r.IntN(70_000))
	}
	return int64(1 + r.IntN(9000))
}

// content is what an operation writes: it tells operations and places apart.
func (o Op) content(n int64) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = o.Seed + byte(i%251)
	}
	return b
}
