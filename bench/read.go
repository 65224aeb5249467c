package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"golang.org/x/sys/unix"
)

const (
	randomOps  = 50_000
	blockSize  = 128 << 10
	randomSeed = 20240601
)

// readWorkloads read a lower file of 512 MiB: sequentially, at random and through a mapping; in a fresh mount with the
// lower's pages in the page cache (first), and again (warm).
func readWorkloads() []Workload {
	var out []Workload
	for _, kind := range []struct {
		name, doc string
		run       func(e *Env, before int) error
	}{
		{"seq", "sequential read of 512 MiB in blocks of 128 KiB", measureSeqRead},
		{"rand", "50,000 random reads of 4 KiB in 512 MiB", measureRandRead},
		{"mmap", "read of every page of a mapping of 512 MiB", measureMmapRead},
	} {
		for before, phase := range []string{"first", "warm"} {
			out = append(out, Workload{
				Name: fmt.Sprintf("read-%s-%s", kind.name, phase), Doc: kind.doc + ", " + phase, Fixture: bigFixture(),
				Run: func(_ context.Context, e *Env) error { return kind.run(e, before) },
			})
		}
	}
	return out
}

// again calls f, measured, after a number of unmeasured calls.
func (e *Env) again(before int, f func() error) error {
	for range before {
		if err := f(); err != nil {
			return err
		}
	}
	return e.Measure(f)
}

func measureSeqRead(e *Env, before int) error {
	buf := make([]byte, blockSize)
	total := 0
	err := e.again(before, func() error {
		fd, err := unix.Openat(e.Root, bigName, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return opError("open", bigName, err)
		}
		defer unix.Close(fd)
		total = 0
		for {
			n, err := unix.Read(fd, buf)
			if err != nil {
				return opError("read", bigName, err)
			}
			if n == 0 {
				return nil
			}
			if err := checkPage(buf[:n], int64(total)); err != nil {
				return err
			}
			total += n
		}
	})
	e.Ops(total / blockSize)
	if err != nil {
		return err
	}
	return expect("bytes read", total, e.Tree.Size)
}

// randomOffsets are reproducible page-aligned offsets within size.
func randomOffsets(n int, size int) []int64 {
	r := rand.New(rand.NewPCG(randomSeed, randomSeed))
	out := make([]int64, n)
	for i := range out {
		out[i] = r.Int64N(int64(size/pageSize)) * pageSize
	}
	return out
}

func measureRandRead(e *Env, before int) error {
	buf := make([]byte, pageSize)
	offsets := randomOffsets(e.N(randomOps), e.Tree.Size)
	e.Ops(len(offsets))
	return e.again(before, func() error {
		fd, err := unix.Openat(e.Root, bigName, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return opError("open", bigName, err)
		}
		defer unix.Close(fd)
		for _, off := range offsets {
			n, err := unix.Pread(fd, buf, off)
			if err != nil {
				return opError("pread", bigName, err)
			}
			if err := checkPage(buf[:n], off); err != nil {
				return err
			}
		}
		return nil
	})
}

func measureMmapRead(e *Env, before int) error {
	e.Ops(e.Tree.Size / pageSize)
	return e.again(before, func() error {
		fd, err := unix.Openat(e.Root, bigName, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return opError("open", bigName, err)
		}
		defer unix.Close(fd)
		m, err := unix.Mmap(fd, 0, e.Tree.Size, unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return opError("mmap", bigName, err)
		}
		for off := 0; off < len(m); off += pageSize {
			if got := binary.LittleEndian.Uint64(m[off:]); got != uint64(off) {
				return fmt.Errorf("verify: mapping at %d: got %d", off, got)
			}
		}
		return unix.Munmap(m)
	})
}
