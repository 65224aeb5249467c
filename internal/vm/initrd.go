package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/internal/vm/guest"
)

// loadOrder returns the files of the named modules and of those they need, in the order in which they can be loaded.
// Modules that the kernel has built in have none. tree is /lib/modules/RELEASE; cf. modules.dep(5).
func loadOrder(tree string, names []string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(tree, "modules.dep"))
	if err != nil {
		return nil, err
	}
	needs := make(map[string][]string)
	files := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		file, deps, _ := strings.Cut(strings.TrimSpace(line), ":")
		needs[file] = strings.Fields(deps)
		files[strings.TrimSuffix(path.Base(file), ".ko")] = file
	}
	var order []string
	add := func(file string) {
		if file = filepath.Join(tree, file); !slices.Contains(order, file) {
			order = append(order, file)
		}
	}
	for _, name := range names {
		file, ok := files[name]
		if !ok {
			continue
		}
		for _, d := range slices.Backward(needs[file]) {
			add(d)
		}
		add(file)
	}
	return order, nil
}

// initialFiles returns the file system that a machine starts with: this program, what it shall do, and the modules that it
// needs to reach the rest. It is in the newc format of cpio; cf. Linux Documentation/driver-api/early-userspace.
func initialFiles(job []byte, modules []string) (f *os.File, err error) {
	fd, err := unix.MemfdCreate("initrd", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f = os.NewFile(uintptr(fd), "initrd")
	w := &archive{w: bufio.NewWriter(f)}
	for _, d := range append(guest.Directories(), guest.ModuleDir) {
		w.add(d, unix.S_IFDIR|0o755, nil)
	}
	w.add(guest.JobFile, unix.S_IFREG|0o600, job)
	w.addFile("/init", "/proc/self/exe", 0o755)
	for i, m := range modules {
		w.addFile(fmt.Sprintf("%s/%03d.ko", guest.ModuleDir, i), m, 0o600)
	}
	w.add("TRAILER!!!", 0, nil)
	if err := errors.Join(w.err, w.w.Flush()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// archive writes cpio entries and remembers the first failure.
type archive struct {
	w     *bufio.Writer
	inode int
	err   error
}

func (a *archive) addFile(name, from string, mode int) {
	data, err := os.ReadFile(from)
	if err != nil {
		a.err = errors.Join(a.err, err)
		return
	}
	a.add(name, unix.S_IFREG|mode, data)
}

func (a *archive) add(name string, mode int, data []byte) {
	if a.err != nil {
		return
	}
	a.inode++
	name = strings.TrimPrefix(name, "/")
	// magic, ino, mode, uid, gid, nlink, mtime, filesize, dev, rdev, namesize, check
	n, err := fmt.Fprintf(a.w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	if err == nil {
		err = pad(a.w, n)
	}
	if err == nil {
		_, err = a.w.Write(data)
	}
	if err == nil {
		err = pad(a.w, len(data))
	}
	a.err = err
}

// pad fills up to a multiple of four bytes.
func pad(w io.Writer, n int) error {
	_, err := w.Write(make([]byte, -n&3))
	return err
}
