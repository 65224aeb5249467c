package uniontest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// C is what a case works with: the test, the tree under test and checks. A failed check whose continuation makes no
// sense ends the case.
type C struct {
	*testing.T
	Tree
	Spec    Spec
	factory Factory
}

// Is reports whether the implementation has all of the traits.
func (c *C) Is(t Traits) bool { return c.factory.Traits()&t == t }

// OK ends the case if err is not nil.
func (c *C) OK(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// Fails checks that err is one of the errnos.
func (c *C) Fails(err error, want ...syscall.Errno) {
	c.Helper()
	for _, e := range want {
		if errors.Is(err, e) {
			return
		}
	}
	c.Errorf("error is %v, want %s", err, errnoNames(want))
}

func errnoNames(list []syscall.Errno) string {
	var names []string
	for _, e := range list {
		names = append(names, unix.ErrnoName(e))
	}
	return strings.Join(names, " or ")
}

// Eq checks that two values are equal.
func Eq[T comparable](c *C, what string, got, want T) {
	c.Helper()
	if got != want {
		c.Errorf("%s is %v, want %v", what, got, want)
	}
}

// On runs f with a C for the same tree as another user sees it.
func (c *C) On(cred testenv.Cred) *C {
	return &C{T: c.T, Tree: c.Tree.As(cred), Spec: c.Spec, factory: c.factory}
}

// Nobody is a user that owns nothing.
func Nobody() testenv.Cred { return testenv.Cred{UID: 65534, GID: 65534} }

// User is an ordinary user.
func User(uid int) testenv.Cred { return testenv.Cred{UID: uid, GID: uid} }

// Put creates or replaces a file with the given content.
func (c *C) Put(p, content string) {
	c.Helper()
	c.PutMode(p, content, 0o644)
}

// PutMode is Put with a mode for a file that is not yet there.
func (c *C) PutMode(p, content string, mode uint32) {
	c.Helper()
	f, err := c.Open(p, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, mode)
	c.OK(err)
	c.WriteAll(f, content, 0)
	c.OK(f.Close())
}

// WriteAll writes all of content at off.
func (c *C) WriteAll(f File, content string, off int64) {
	c.Helper()
	for b := []byte(content); len(b) > 0; {
		n, err := f.WriteAt(b, off)
		c.OK(err)
		if n == 0 {
			c.Fatal("write of 0 bytes")
		}
		b, off = b[n:], off+int64(n)
	}
}

// Append appends to an existing file.
func (c *C) Append(p, content string) {
	c.Helper()
	f, err := c.Open(p, unix.O_WRONLY|unix.O_APPEND, 0)
	c.OK(err)
	n, err := f.Write([]byte(content))
	c.OK(err)
	Eq(c, "bytes appended", n, len(content))
	c.OK(f.Close())
}

// Get returns the content of a file.
func (c *C) Get(p string) string {
	c.Helper()
	f, err := c.Open(p, unix.O_RDONLY, 0)
	c.OK(err)
	defer func() { c.OK(f.Close()) }()
	return c.GetFile(f)
}

// GetFile returns the content of an open file.
func (c *C) GetFile(f File) string {
	c.Helper()
	var all bytes.Buffer
	buf := make([]byte, 128<<10)
	for off := int64(0); ; {
		n, err := f.ReadAt(buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			c.Fatal(err)
		}
		if n == 0 {
			return all.String()
		}
		all.Write(buf[:n])
		off += int64(n)
	}
}

// Has checks that a file has the given content.
func (c *C) Has(p, content string) {
	c.Helper()
	if got := c.Get(p); got != content {
		c.Errorf("%s contains %s, want %s", p, clip(got), clip(content))
	}
}

func clip(s string) string {
	if len(s) > 60 {
		return fmt.Sprintf("%q... (%d bytes)", s[:60], len(s))
	}
	return fmt.Sprintf("%q", s)
}

// Absent checks that a name does not exist, neither by lookup nor in its directory's list.
func (c *C) Absent(p string) {
	c.Helper()
	if st, err := c.Lstat(p); !errors.Is(err, unix.ENOENT) {
		c.Errorf("%s: stat gives %v (mode %o), want ENOENT", p, err, st.Mode)
	}
	if names := c.Names(path.Dir(p)); slices.Contains(names, path.Base(p)) {
		c.Errorf("%s is listed in its directory: %v", p, names)
	}
}

// Names returns the sorted names in a directory, without "." and "..".
func (c *C) Names(p string) []string {
	c.Helper()
	list, err := c.ReadDir(p)
	c.OK(err)
	var names []string
	for _, d := range list {
		if d.Name != "." && d.Name != ".." {
			names = append(names, d.Name)
		}
	}
	slices.Sort(names)
	return names
}

// Lists checks the names in a directory, and that each can be looked up and has the type that the directory says.
func (c *C) Lists(p string, want ...string) {
	c.Helper()
	slices.Sort(want)
	if got := c.Names(p); !slices.Equal(got, want) {
		c.Errorf("%s lists %q, want %q", p, got, want)
		return
	}
	list, err := c.ReadDir(p)
	c.OK(err)
	for _, d := range list {
		if d.Name == "." || d.Name == ".." {
			continue
		}
		if st := c.Stat(path.Join(p, d.Name)); st.Type() != d.Type {
			c.Errorf("%s/%s: type %o in the list, %o by stat", p, d.Name, d.Type, st.Type())
		}
	}
}

// Stat is Lstat that must succeed.
func (c *C) Stat(p string) Stat {
	c.Helper()
	st, err := c.Lstat(p)
	c.OK(err)
	return st
}

// StatFile is File.Stat that must succeed.
func (c *C) StatFile(f File) Stat {
	c.Helper()
	st, err := f.Stat()
	c.OK(err)
	return st
}

// OpenFile is Open that must succeed. The file is closed at the end of the case if it is still open.
func (c *C) OpenFile(p string, flags int, mode uint32) File {
	c.Helper()
	f, err := c.Open(p, flags, mode)
	c.OK(err)
	return f
}

// Attr returns an extended attribute that must exist.
func (c *C) Attr(p, name string) string {
	c.Helper()
	buf := make([]byte, 64<<10)
	n, err := c.Getxattr(p, name, buf)
	c.OK(err)
	return string(buf[:n])
}

// Attrs returns the sorted names of a file's attributes.
func (c *C) Attrs(p string) []string {
	c.Helper()
	buf := make([]byte, 64<<10)
	n, err := c.Listxattr(p, buf)
	c.OK(err)
	names := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	return names
}

// InUpper returns the path of p in the upper's directory.
func (c *C) InUpper(p string) string { return filepath.Join(c.Spec.Upper, p) }

// UpperStat stats p directly in the upper; ok is false if it is not there.
func (c *C) UpperStat(p string) (st unix.Stat_t, ok bool) {
	c.Helper()
	err := unix.Lstat(c.InUpper(p), &st)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
		c.Fatal(err)
	}
	return st, err == nil
}

// Overlay returns the value of an overlay attribute of p in the upper, "" if there is none.
func (c *C) Overlay(p, attr string) string {
	c.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Lgetxattr(c.InUpper(p), prefix(c.factory)+"overlay."+attr, buf)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return ""
	}
	c.OK(err)
	return string(buf[:n])
}

// Omit is the time that Utimens leaves alone, Now the current time.
func Omit() unix.Timespec { return unix.Timespec{Nsec: unix.UTIME_OMIT} }

// Now is the current time for Utimens.
func Now() unix.Timespec { return unix.Timespec{Nsec: unix.UTIME_NOW} }

// Old returns a time in the past with nanoseconds.
func Old() unix.Timespec { return unix.Timespec{Sec: 1_000_000_000, Nsec: 123_456_789} }
