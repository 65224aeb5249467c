package bench

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	randWriteSize = 256 << 20
	fsyncs        = 1_000
	newName       = "new"
)

// writeWorkloads write to files of the upper layer, and make the first write to a huge lower file.
func writeWorkloads() []Workload {
	return []Workload{
		{
			Name: "write-seq", Doc: "sequential write of a new file of 512 MiB in blocks of 128 KiB", Fixture: emptyFixture(),
			Run: func(_ context.Context, e *Env) error { return measureSeqWrite(e) },
		},
		{
			Name: "write-rand", Doc: "50,000 random writes of 4 KiB in an upper file of 256 MiB", Fixture: emptyFixture(),
			Run: func(_ context.Context, e *Env) error { return measureRandWrite(e) },
		},
		{
			Name: "fsync", Doc: "1,000 times an appended 4 KiB and fsync", Fixture: emptyFixture(),
			Run: func(_ context.Context, e *Env) error { return measureFsync(e) },
		},
		{
			Name: "write-first-big", Doc: "open a lower file of 512 MiB, write one byte, close", Fixture: bigFixture(),
			Run: func(_ context.Context, e *Env) error { return measureFirstWrite(e) },
		},
	}
}

// writeBlocks makes a new file of size bytes.
func writeBlocks(root int, name string, size int) error {
	fd, err := unix.Openat(root, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return opError("create", name, err)
	}
	buf := make([]byte, blockSize)
	fill(buf, 0)
	for off := 0; off < size; off += len(buf) {
		if err := writeAll(fd, buf[:min(len(buf), size-off)]); err != nil {
			unix.Close(fd)
			return opError("write", name, err)
		}
	}
	if err := unix.Close(fd); err != nil {
		return opError("close", name, err)
	}
	return nil
}

// expectSize verifies the size of a file.
func expectSize(root int, name string, want int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(root, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return opError("stat", name, err)
	}
	return expect("size of "+name, st.Size, int64(want))
}

// expectPages verifies the first bytes of pages of a file.
func expectPages(root int, name string, pages map[int64]int64) error {
	fd, err := unix.Openat(root, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return opError("open", name, err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 8)
	for off, want := range pages {
		n, err := unix.Pread(fd, buf, off)
		if err != nil {
			return opError("pread", name, err)
		}
		if err := checkPage(buf[:n], want); err != nil {
			return fmt.Errorf("page at %d: %w", off, err)
		}
	}
	return nil
}

func measureSeqWrite(e *Env) error {
	size := max(blockSize, e.N(bigSize)&^(blockSize-1))
	e.Ops(size / blockSize)
	if err := e.Measure(func() error { return writeBlocks(e.Root, newName, size) }); err != nil {
		return err
	}
	if err := expectPages(e.Root, newName, map[int64]int64{0: 0, int64(size - blockSize): 0}); err != nil {
		return err
	}
	return expectSize(e.Root, newName, size)
}

func measureRandWrite(e *Env) error {
	size := max(blockSize, e.N(randWriteSize)&^(blockSize-1))
	if err := writeBlocks(e.Root, newName, size); err != nil {
		return err
	}
	offsets := randomOffsets(e.N(randomOps), size)
	e.Ops(len(offsets))
	buf := make([]byte, pageSize)
	const mark = 0x5eed
	fill(buf, mark)
	err := e.Measure(func() error {
		fd, err := unix.Openat(e.Root, newName, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return opError("open", newName, err)
		}
		for _, off := range offsets {
			if n, err := unix.Pwrite(fd, buf, off); err != nil || n != len(buf) {
				unix.Close(fd)
				return fmt.Errorf("pwrite %s: %d bytes, %w", newName, n, err)
			}
		}
		return unix.Close(fd)
	})
	if err != nil {
		return err
	}
	if err := expectPages(e.Root, newName, map[int64]int64{offsets[0]: mark, offsets[len(offsets)-1]: mark}); err != nil {
		return err
	}
	return expectSize(e.Root, newName, size)
}

func measureFsync(e *Env) error {
	fd, err := unix.Openat(e.Root, newName, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return opError("create", newName, err)
	}
	defer unix.Close(fd)
	n := e.N(fsyncs)
	buf := make([]byte, pageSize)
	e.Ops(n)
	err = e.Measure(func() error {
		for range n {
			if err := writeAll(fd, buf); err != nil {
				return opError("write", newName, err)
			}
			if err := unix.Fsync(fd); err != nil {
				return opError("fsync", newName, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return expectSize(e.Root, newName, n*pageSize)
}

func measureFirstWrite(e *Env) error {
	const last = 0x42
	at := int64(e.Tree.Size - 1)
	e.Ops(1)
	err := e.Measure(func() error {
		fd, err := unix.Openat(e.Root, bigName, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return opError("open", bigName, err)
		}
		if _, err := unix.Pwrite(fd, []byte{last}, at); err != nil {
			unix.Close(fd)
			return opError("pwrite", bigName, err)
		}
		return unix.Close(fd)
	})
	if err != nil {
		return err
	}
	middle := at / 2 &^ (pageSize - 1)
	if err := expectPages(e.Root, bigName, map[int64]int64{0: 0, middle: middle}); err != nil {
		return err
	}
	return expectSize(e.Root, bigName, e.Tree.Size)
}
