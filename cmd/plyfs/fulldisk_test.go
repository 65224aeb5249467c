package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// TestMappedWriteFullDisk: what is written through a mapping and does not fit is an error of msync(2), also where the first part
// of what the kernel writes back at once does fit.
func TestMappedWriteFullDisk(t *testing.T) {
	const space, size = 512 << 10, 768 << 10
	disk := testenv.Scratch(t)
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { testenv.Unmount(t, disk) })
	dir := filepath.Join(disk, "union")
	leavesNothing(t, dir)
	mkdirs(t, dir, "lower", "lower2", "upper", "work", "merged")
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers+",data=noopen,volatile", "merged")
	defer func() {
		testenv.Unmount(t, filepath.Join(dir, "merged"))
		waitGone(t, dir)
	}()
	f, err := os.OpenFile(filepath.Join(dir, "merged/mapped"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < size; i += os.Getpagesize() {
		m[i] = 1
	}
	if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 1<<20-space), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Msync(m, unix.MS_SYNC); !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EIO) {
		t.Errorf("msync of %d bytes into %d: %v", size, space, err)
	}
	if err := unix.Munmap(m); err != nil {
		t.Fatal(err)
	}
}
