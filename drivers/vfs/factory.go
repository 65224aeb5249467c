package vfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/drivers/internal/layerdir"
)

// Factory returns what makes the driver.
func Factory() drivers.Factory {
	return drivers.Factory{
		Name:    Name,
		Summary: "full copies of directories, shared where the file system can; works anywhere",
		Probe:   probe,
		Open:    open,
	}
}

func probe(_ context.Context, o drivers.Options) drivers.Report {
	dir, remove, err := layerdir.Scratch(o.Home)
	if err != nil {
		return drivers.Report{
			Why:  fmt.Sprintf("nothing can be written at %s: %v", o.Home, err),
			Todo: "choose another place for the store (--root)",
		}
	}
	r := drivers.Report{
		Usable:  true,
		Why:     fmt.Sprintf("it needs nothing but a place that can be written, such as %s", o.Home),
		Warning: "every layer is a full copy of all below it: slow, and an image of n layers takes up to n times its size",
		Todo:    "use another driver, or put the store on xfs or btrfs, where copies share data",
	}
	if reflinks(dir) == shared {
		r.Warning, r.Todo = "every layer copies all names and attributes of those below it", ""
	}
	if err := remove(); err != nil {
		return drivers.Report{Why: fmt.Sprintf("what was tried at %s cannot be removed: %v", o.Home, err)}
	}
	return r
}

// What reflinks answers.
const (
	shared = "yes"
	copied = "no"
)

// reflinks finds out whether files in dir can share data, by trying.
func reflinks(dir string) string {
	src, err := os.CreateTemp(dir, ".tmp-probe-")
	if err != nil {
		return "unknown: " + err.Error()
	}
	defer os.Remove(src.Name())
	defer src.Close()
	dst, err := os.CreateTemp(dir, ".tmp-probe-")
	if err != nil {
		return "unknown: " + err.Error()
	}
	defer os.Remove(dst.Name())
	defer dst.Close()
	if _, err := src.Write(make([]byte, 1<<16)); err != nil {
		return "unknown: " + filepath.Base(src.Name()) + ": " + err.Error()
	}
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) != nil {
		return copied
	}
	return shared
}
