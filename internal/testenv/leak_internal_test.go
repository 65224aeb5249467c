package testenv

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A descriptor whose path is longer than readlink can tell is open none the less.
func TestOpenFilesDeep(t *testing.T) {
	before := openFiles()
	fd, err := unix.Open(t.TempDir(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { unix.Close(fd) }()
	name := strings.Repeat("d", unix.NAME_MAX)
	for range unix.PathMax/unix.NAME_MAX + 1 {
		if err := unix.Mkdirat(fd, name, 0o700); err != nil {
			t.Fatal(err)
		}
		sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = sub
	}
	if left := newFiles(before); !slices.ContainsFunc(left, func(s string) bool { return strings.Contains(s, "too long") }) {
		t.Errorf("open directory beyond PATH_MAX is not seen: %q", left)
	}
}
