package fsck

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// splitPath cuts the last component off a path; dir is "" if there is only one.
func splitPath(path string) (dir, base string) {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)], path[i+1:]
}

// joined is dir/name, where an empty dir is a layer's root.
func joined(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func pathOrRoot(path string) string {
	if path == "" {
		return "."
	}
	return path
}

func notThere(err error) bool { return errors.Is(err, unix.ENOENT) }
