package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	firstAnswer   = "first-answer"
	indexMemory   = "index-memory"
	indexRate     = "index-build-per-entry"
	indexSize     = "index-bytes-per-entry"
	mountsRSS     = "mounts-rss"
	mountsPSS     = "mounts-pss"
	mountsMapped  = "mounts-index-rss"
	mountsShared  = "mounts-index-pss"
	walkedDirs    = 1000
	manyMounts    = 50
	fewestMounts  = 10  // with fewer the part that is shared says nothing
	manyMountDirs = 100 // directories that each of many mounts walks
)

// indexWorkloads measure what a large index costs: building it, mounting with it, and memory.
func indexWorkloads() []Workload {
	f := wideFixture()
	return []Workload{
		{
			Name: "index-build", Doc: "time and bytes on disk for an entry of an index of 1,000,000, layers in the page cache",
			Fixture: f, Mounting: Unmounted, On: Indexed, Run: measureIndexBuild,
			Series: []Series{{indexRate, Nanoseconds}, {indexSize, Bytes}},
		},
		{
			Name: firstAnswer, Doc: "mount and stat of one file, 1,000,000 entries in 4 layers",
			Fixture: f, Mounting: Unmounted, On: PlyfsOnly, Run: measureFirstAnswer,
		},
		{
			Name:    indexMemory,
			Doc:     "anonymous memory of the server after a stat walk of 1,000 directories of 10,000 with 100 files each",
			Fixture: f, On: PlyfsOnly, Run: measureIndexMemory, Series: []Series{{indexMemory, Bytes}},
		},
		{
			Name: "mounts", Doc: "50 mounts of one stack that have each walked the same 100 directories: " +
				"memory of all servers together, resident and with shared pages counted once",
			Fixture: f, Mounting: Unmounted, On: PlyfsOnly, MaxSamples: 1, Run: measureMounts,
			Series: []Series{{mountsRSS, Bytes}, {mountsPSS, Bytes}, {mountsMapped, Bytes}, {mountsShared, Bytes}},
		},
	}
}

// measureIndexBuild builds another index of the layers, on the medium of the upper.
func measureIndexBuild(ctx context.Context, e *Env) error {
	dir := filepath.Join(filepath.Dir(e.Layout.Upper), "built")
	err := e.Measure(func() error { return e.System.index(ctx, e.Layout.Lowers, dir) })
	if err != nil {
		return err
	}
	// The root's own attributes are no entry.
	entries := e.Tree.Files + len(e.Tree.dirs())
	size, err := diskUsage(dir)
	if err != nil {
		return err
	}
	e.Ops(entries)
	e.Report(indexRate, float64(e.Elapsed())/float64(entries))
	e.Report(indexSize, float64(size)/float64(entries))
	return nil
}

// measureFirstAnswer measures from the call of the mount command to the attributes of a file amid the tree.
func measureFirstAnswer(ctx context.Context, e *Env) error {
	name := e.Dir + "/" + e.Tree.path(e.Tree.Files/2)
	var st unix.Stat_t
	e.Ops(1)
	err := e.Measure(func() error {
		if err := e.Mount(ctx, e.Layout); err != nil {
			return err
		}
		if err := unix.Lstat(name, &st); err != nil {
			return opError("stat", name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return errors.Join(e.expectServers(1), e.Unmount(ctx, e.Layout), e.Reap(ctx))
}

// measureIndexMemory walks a tenth of the directories.
func measureIndexMemory(_ context.Context, e *Env) error {
	dirs := min(e.N(walkedDirs), e.Tree.Files/e.Tree.PerDir)
	if err := e.Measure(func() error { return walkDirs(e.Root, e.Tree, dirs) }); err != nil {
		return err
	}
	e.Ops(dirs)
	anon, err := anonymousBytes(e.ServerPID)
	if err != nil {
		return err
	}
	e.Report(indexMemory, float64(anon))
	return nil
}

// walkDirs visits the first n directories that hold files, with a stat of each entry, and verifies their number.
func walkDirs(root int, t Tree, n int) error {
	for i := range n {
		dir := t.dirOf(i * t.PerDir)
		fd, err := unix.Openat(root, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return opError("open", dir, err)
		}
		c, err := walk(fd, StatEach)
		unix.Close(fd)
		if err != nil {
			return err
		}
		if err := expect("files in "+dir, c.files, t.PerDir); err != nil {
			return err
		}
	}
	return nil
}

// measureMounts makes many mounts of one stack. All of them serve when the memory is read.
func measureMounts(ctx context.Context, e *Env) (err error) {
	mounts := max(fewestMounts, e.N(manyMounts))
	base := filepath.Join(filepath.Dir(e.Layout.Upper), "mounts")
	var made []Layout
	defer func() {
		for _, l := range made {
			err = errors.Join(err, e.Unmount(ctx, l))
		}
		err = errors.Join(err, e.Reap(ctx))
	}()
	e.Ops(mounts)
	err = e.Measure(func() error {
		for i := range mounts {
			l, err := newLayout(filepath.Join(base, strconv.Itoa(i)), e.Layout.Lowers)
			if err != nil {
				return err
			}
			if err := e.Mount(ctx, l); err != nil {
				return err
			}
			made = append(made, l)
			if err := walkFirst(l.Target, e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := e.expectServers(mounts); err != nil {
		return err
	}
	return e.reportShared()
}

// newLayout makes the directories of one more mount below dir.
func newLayout(dir string, lowers []string) (Layout, error) {
	l := Layout{
		Lowers: lowers, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"),
		Target: filepath.Join(dir, "merged"),
	}
	return l, errors.Join(os.MkdirAll(l.Upper, 0o755), os.MkdirAll(l.Work, 0o755), os.MkdirAll(l.Target, 0o755))
}

func walkFirst(target string, e *Env) error {
	root, err := unix.Open(target, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return opError("open", target, err)
	}
	defer unix.Close(root)
	return walkDirs(root, e.Tree, min(e.N(manyMountDirs), e.Tree.Files/e.Tree.PerDir))
}

// expectServers verifies that n servers run, each with the index if there is one.
func (e *Env) expectServers(n int) error {
	servers, err := childrenOf(os.Getpid())
	if err != nil {
		return err
	}
	if err := expect("servers", len(servers), n); err != nil || e.Index == "" {
		return err
	}
	for _, pid := range servers {
		if err := expectIndexUsed(pid, e.Index); err != nil {
			return err
		}
	}
	return nil
}

// childrenOf returns the processes whose parent is pid.
func childrenOf(pid int) ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, name := range dirs {
		stat, err := os.ReadFile(name)
		if err != nil {
			continue // it ended
		}
		// The name of the program, in parentheses, may have any character in it.
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(f) > 1 && f[1] == strconv.Itoa(pid) {
			child, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			if err != nil {
				return nil, err
			}
			out = append(out, child)
		}
	}
	return out, nil
}

// sharing is memory of a process: Rss is what is resident, Pss the same with each page divided by the number of
// processes that have it.
type sharing struct{ Rss, Pss int64 }

// reportShared adds up the memory of all servers, and the part of it that maps the index.
func (e *Env) reportShared() error {
	servers, err := childrenOf(os.Getpid())
	if err != nil {
		return err
	}
	var all, index sharing
	for _, pid := range servers {
		if err := addMappings(pid, e.Index, &all, &index); err != nil {
			return err
		}
	}
	e.Report(mountsRSS, float64(all.Rss))
	e.Report(mountsPSS, float64(all.Pss))
	if e.Index != "" {
		e.Report(mountsMapped, float64(index.Rss))
		e.Report(mountsShared, float64(index.Pss))
	}
	return nil
}

// addMappings adds all mappings of a process to all, and those of files below dir to within.
func addMappings(pid int, dir string, all, within *sharing) error {
	smaps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return err
	}
	inside := false
	for line := range strings.Lines(string(smaps)) {
		f := strings.Fields(line)
		if len(f) > 0 && !strings.HasSuffix(f[0], ":") {
			inside = dir != "" && len(f) > 5 && strings.HasPrefix(f[5], dir+"/")
			continue
		}
		if len(f) != 3 || f[0] != "Rss:" && f[0] != "Pss:" {
			continue
		}
		kib, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return fmt.Errorf("memory of process %d: %w", pid, err)
		}
		add := func(s *sharing) {
			if f[0] == "Rss:" {
				s.Rss += kib << 10
			} else {
				s.Pss += kib << 10
			}
		}
		add(all)
		if inside {
			add(within)
		}
	}
	return nil
}
