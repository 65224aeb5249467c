//go:build vm

package powercut

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"plyfs/internal/testenv"
	"plyfs/internal/vm/vmtest"
)

func loads() []load { return []load{mergedLoad()} }

// defaultCuts is how many durable points of a load are looked at, spread over all, if PLYFS_POWERCUTS doesn't say how many:
// emulated, each takes a second.
const defaultCuts = 8

// The log of dm-log-writes; cf. Linux drivers/md/dm-log-writes.c, struct log_write_super and log_write_entry.
const (
	logMagic   = 0x6a736677736872
	logVersion = 1

	flagFlush   = 1
	flagFUA     = 2
	flagDiscard = 4
	flagMark    = 8
)

// entry is one write of the log.
type entry struct {
	sector, sectors, flags uint64
	mark                   string
	data                   int64 // where in the log what was written is
}

var errNoLog = errors.New("no log of dm-log-writes")

// readLog reads the entries of a log, without what was written, and the size of a sector.
func readLog(log io.ReaderAt) ([]entry, int64, error) {
	head := make([]byte, 28)
	if _, err := log.ReadAt(head, 0); err != nil {
		return nil, 0, err
	}
	le := binary.LittleEndian
	if le.Uint64(head) != logMagic || le.Uint64(head[8:]) != logVersion {
		return nil, 0, errNoLog
	}
	size := int64(le.Uint32(head[24:]))
	entries := make([]entry, le.Uint64(head[16:]))
	at := size
	block := make([]byte, size)
	for i := range entries {
		if _, err := log.ReadAt(block, at); err != nil {
			return nil, 0, fmt.Errorf("entry %d: %w", i, err)
		}
		e := entry{sector: le.Uint64(block), sectors: le.Uint64(block[8:]), flags: le.Uint64(block[16:]), data: at + size}
		at += size
		switch {
		case e.flags&flagMark != 0:
			e.mark = strings.TrimRight(string(block[32:min(uint64(size), 32+le.Uint64(block[24:]))]), "\x00")
		case e.flags&flagDiscard == 0:
			at += int64(e.sectors) * size
		}
		entries[i] = e
	}
	return entries, size, nil
}

// TestLogWrites cuts the power at points of a running load that a flush, or a write with FUA, made durable: the disk is then what
// such a disk had promised to keep, and nothing more.
func TestLogWrites(t *testing.T) {
	lower := filepath.Join(testenv.Scratch(t), "lower")
	writeLower(t, lower)
	for _, fs := range fileSystems() {
		t.Run(fs.name, func(t *testing.T) {
			record(t, fs, lower)
			newBoot(t)
			replay(t, fs, lower)
		})
	}
}

// diskTable is the table of a device over the first diskSize bytes of something.
func diskTable(target string) string { return fmt.Sprintf("0 %d %s", diskSize/512, target) }

func clear(t *testing.T, disk string) {
	t.Helper()
	vmtest.Run(t, "dd", "if=/dev/zero", "of="+disk, "bs=1M", "count="+strconv.Itoa(diskSize>>20), "conv=notrunc,fsync", "status=none")
}

// record runs the load with an upper on the first disk and leaves the log on the second.
func record(t *testing.T, fs fileSystem, lower string) {
	t.Helper()
	disk, log := vmtest.Disk(t, 0), vmtest.Disk(t, 1)
	clear(t, disk)
	vmtest.Run(t, "dmsetup", "create", "base", "--table", diskTable("linear "+disk+" 0"))
	defer vmtest.Run(t, "dmsetup", "remove", "--retry", "base")
	vmtest.Run(t, "dmsetup", "create", "logged", "--table", diskTable("log-writes /dev/mapper/base "+log))
	defer vmtest.Run(t, "dmsetup", "remove", "--retry", "logged")
	vmtest.Run(t, fs.mkfs[0], append(fs.mkfs[1:], "/dev/mapper/logged")...)
	dir := testenv.Scratch(t)
	vmtest.Run(t, "mount", "-t", fs.name, "/dev/mapper/logged", dir)
	defer testenv.Unmount(t, dir)
	s := layersOn(lower, dir)
	s.make(t)
	mark := func(i int) { vmtest.Run(t, "dmsetup", "message", "logged", "0", "mark", strconv.Itoa(i+1)) }
	merged := testenv.Scratch(t)
	defer s.mount(t, merged)()
	mark(-1)
	startLoad(t, mergedLoad(), merged, mark, func(int) {})
}

// replay writes the log onto the first disk and looks at durable points on the way.
func replay(t *testing.T, fs fileSystem, lower string) {
	t.Helper()
	disk := strings.Fields(os.Getenv("PLYFS_VM_DISKS"))[0]
	clear(t, disk)
	log, err := os.Open(strings.Fields(os.Getenv("PLYFS_VM_DISKS"))[1])
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	out, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	entries, size, err := readLog(log)
	if err != nil {
		t.Fatal(err)
	}
	durable := durablePoints(entries)
	cuts := min(cutsWanted(t), durable)
	if durable < steps/2 {
		t.Fatalf("the load of %d steps made no more than %d flushes", steps, durable)
	}
	promised, began, seen, looked := 0, false, 0, 0
	for i, e := range entries {
		if n, err := strconv.Atoi(e.mark); err == nil { // the driver has marks of its own
			began, promised = true, n
		}
		if err := apply(out, log, e, size); err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		if !began || e.flags&(flagFlush|flagFUA) == 0 {
			continue
		}
		seen++
		if seen*cuts/durable == looked {
			continue
		}
		if err := out.Sync(); err != nil {
			t.Fatal(err)
		}
		r := recoveries()[looked%2]
		looked++
		t.Run(fmt.Sprintf("entry-%d-%d-promised-%s", i, promised, r), func(t *testing.T) {
			layersOn(lower, mountAt(t, fs.name, "rw", snapshot(t, disk))).checkCut(t, r, promised)
		})
	}
}

// cutsWanted is how many points to look at.
func cutsWanted(t *testing.T) int {
	t.Helper()
	text := os.Getenv("PLYFS_POWERCUTS")
	if text == "" {
		return defaultCuts
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("PLYFS_POWERCUTS=%s: give a number", text)
	}
	return n
}

// durablePoints counts the entries, after the first mark, that made all before them durable.
func durablePoints(entries []entry) int {
	n, began := 0, false
	for _, e := range entries {
		began = began || e.mark != ""
		if began && e.flags&(flagFlush|flagFUA) != 0 {
			n++
		}
	}
	return n
}

// apply does one write of the log. What a discard leaves is not defined; here it leaves what was there.
func apply(disk io.WriterAt, log io.ReaderAt, e entry, size int64) error {
	if e.sectors == 0 || e.flags&(flagDiscard|flagMark) != 0 {
		return nil
	}
	data := make([]byte, int64(e.sectors)*size)
	if _, err := log.ReadAt(data, e.data); err != nil {
		return err
	}
	_, err := disk.WriteAt(data, int64(e.sector)*size)
	return err
}

// snapshot returns a device that holds what the disk does and takes writes that the disk does not see.
func snapshot(t *testing.T, disk string) string {
	t.Helper()
	changes := filepath.Join(testenv.Scratch(t), "changes")
	vmtest.Run(t, "truncate", "-s", "64M", changes)
	loop := vmtest.Run(t, "losetup", "--find", "--show", changes)
	vmtest.Deferred(t, "losetup", "--detach", loop)
	vmtest.Run(t, "dmsetup", "create", "cut", "--table", diskTable("snapshot "+disk+" "+loop+" N 8"))
	vmtest.Deferred(t, "dmsetup", "remove", "--retry", "cut")
	return "/dev/mapper/cut"
}
