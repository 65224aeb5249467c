package fusefs

import (
	"fmt"
	"io"
	"log/slog"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"plyfs/fs/union"
)

func extension(typ uint32, body ...uint32) []byte {
	b := make([]byte, 8+(len(body)*4+7)&^7)
	order.PutUint32(b, uint32(len(b)))
	order.PutUint32(b[4:], typ)
	for i, v := range body {
		order.PutUint32(b[8+4*i:], v)
	}
	return b
}

func TestSplitExt(t *testing.T) {
	name := []byte("name\x00\x00\x00\x00")
	security := append(extension(0), extension(extGroups, 2, 7, 1234)...)
	for _, c := range []struct {
		what   string
		ext    []byte
		groups []uint32
	}{
		{"none", nil, nil},
		{"one group", extension(extGroups, 1, 1234), []uint32{1234}},
		{"after another extension", security, []uint32{7, 1234}},
		{"more groups than bytes", extension(extGroups, 1000, 5), []uint32{5}},
		{"no size", make([]byte, 8), nil},
		{"size beyond the end", extension(extGroups, 1, 2)[:12], nil},
	} {
		req := append(slices.Clone(name), c.ext...)
		rest, groups := splitExt(req, len(c.ext), nil)
		if string(rest) != string(name) && c.ext != nil {
			t.Errorf("%s: rest %q", c.what, rest)
		}
		if c.what == "more groups than bytes" {
			groups = groups[:1]
		}
		if !slices.Equal(groups, c.groups) {
			t.Errorf("%s: groups %v, want %v", c.what, groups, c.groups)
		}
	}
	if rest, groups := splitExt(name, 4096, nil); len(rest) != len(name) || groups != nil {
		t.Error("an extension longer than its request was accepted")
	}
}

func TestDeviceNumbers(t *testing.T) {
	for _, dev := range []uint64{0, unix.Mkdev(1, 3), unix.Mkdev(259, 1048575), unix.Mkdev(4095, 255)} {
		if got := userDev(kernelDev(dev)); got != dev {
			t.Errorf("%#x came back as %#x", dev, got)
		}
	}
	if got := kernelDev(unix.Mkdev(8, 0x12345)); got != 0x12300845 {
		t.Errorf("encoded as %#x", got)
	}
}

func TestStatus(t *testing.T) {
	f := &FS{log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	for _, c := range []struct {
		err  error
		want fuse.Status
	}{
		{nil, fuse.OK},
		{unix.ENOENT, fuse.ENOENT},
		{fmt.Errorf("copy up x: %w", unix.ENOSPC), fuse.Status(unix.ENOSPC)},
		{io.ErrUnexpectedEOF, fuse.EIO},
		{unix.ENOSYS, fuse.ENOTSUP},
	} {
		if got := f.status("test", c.err); got != c.want {
			t.Errorf("%v became %v, want %v", c.err, got, c.want)
		}
	}
}

func message(op uint32, node uint64, arg []byte) request {
	b := make([]byte, inHeaderSize, inHeaderSize+len(arg))
	order.PutUint32(b, uint32(inHeaderSize+len(arg)))
	order.PutUint32(b[4:], op)
	order.PutUint64(b[8:], 77)
	order.PutUint64(b[16:], node)
	return append(b, arg...)
}

// TestPanic: a panic in the union, and a request that is cut short, cost one EIO.
func TestPanic(t *testing.T) {
	f := &FS{log: slog.New(slog.NewTextHandler(io.Discard, nil))} // without a table
	f.doubts.begin()                                              // nor locks that could be looked for
	w := &worker{FS: f, out: make([]byte, 8192)}
	for _, req := range []request{
		message(opGetattr, rootID, make([]byte, 16)),
		message(opSetattr, rootID, nil),
		message(opRead, rootID, make([]byte, 4)),
	} {
		reply := w.answer(req)
		if len(reply) != outHeaderSize || int32(order.Uint32(reply[4:])) != -int32(unix.EIO) || order.Uint64(reply[8:]) != 77 {
			t.Errorf("reply %v", reply)
		}
	}
	if reply := w.answer(message(opForget, rootID, nil)); reply != nil {
		t.Errorf("FORGET was answered: %v", reply)
	}
	if got := f.Counters()["panics"]; got != 4 {
		t.Errorf("%d panics counted, want 4", got)
	}
}

// TestUnknownNode: a request for an id that the kernel should not know is answered ESTALE.
func TestUnknownNode(t *testing.T) {
	f := &FS{log: slog.Default(), table: newTable(new(union.Node))}
	w := &worker{FS: f, out: make([]byte, 8192)}
	for _, op := range []uint32{
		opLookup, opGetattr, opSetattr, opRead, opWrite, opGetxattr, opReaddir, opReaddirplus,
		opOpen, opReadlink, opCreate, opMknod, opMkdir, opSymlink, opUnlink, opRmdir, opLink, opRename, opRename2,
	} {
		reply := w.answer(message(op, 4711, make([]byte, 96)))
		code := unix.Errno(-int32(order.Uint32(reply[4:])))
		if code != unix.ESTALE && !(op == opCreate && code == unix.EINVAL) {
			t.Errorf("%s: %v", opNames[op], code)
		}
	}
}

func TestWalkers(t *testing.T) {
	const pid, dirs, files = 42, 200, 10
	var w walkers
	walk := func(looks bool) (plain int) {
		for dir := uint64(10); dir < 10+dirs; dir++ {
			for part := range uint64(2) {
				if w.reading(pid, dir, part*files) {
					continue
				}
				plain++
				for range files {
					w.unseen(pid, dir)
				}
				for i := 0; looks && i < files; i++ {
					w.looked(dir, unix.S_IFREG)
				}
			}
			w.looked(dir, unix.S_IFDIR)
		}
		return plain
	}
	for range 2 {
		if plain := walk(false); plain < 2*dirs-5 {
			t.Errorf("a walk over names got %d of %d parts without entries", plain, 2*dirs)
		}
		if plain := walk(true); plain > dirs/probeEvery+5 {
			t.Errorf("a walk that looks at all files got %d of %d parts without entries", plain, 2*dirs)
		}
		w.reading(pid+64, 1, 0) // another thread at the same place
	}
}
