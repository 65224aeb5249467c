package tarlayer_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/tarlayer"
	"plyfs/internal/fingerprint"
	"plyfs/internal/sys"
	"plyfs/internal/testenv"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(envChild); dir != "" {
		os.Exit(unpackChild(dir))
	}
	os.Exit(testenv.Main(m, testenv.Options{}))
}

var must = testenv.Must

// open opens path as a layer for the time of the test.
func open(t testing.TB, path string) *layer.Layer {
	t.Helper()
	l, err := layer.Open(path)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// subdir makes a directory in dir.
func subdir(t testing.TB, dir, name string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	must(t, os.MkdirAll(p, 0o755))
	return p
}

var stamp = time.Unix(1_700_000_000, 0)

// member is a header with its content. Mode and time have defaults.
type member struct {
	tar.Header
	content string
}

func file(name, content string) member {
	return member{tar.Header{Typeflag: tar.TypeReg, Name: name}, content}
}

func directory(name string) member {
	return member{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/"}}
}

func symlink(name, target string) member {
	return member{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}}
}

func hardlink(name, target string) member {
	return member{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}}
}

func device(name string, major, minor int64) member {
	return member{Header: tar.Header{Typeflag: tar.TypeChar, Name: name, Devmajor: major, Devminor: minor}}
}

func (m member) mode(mode int64) member { m.Mode = mode; return m }

func (m member) owner(uid, gid int) member { m.Uid, m.Gid = uid, gid; return m }

func (m member) xattr(name, value string) member {
	records := map[string]string{"SCHILY.xattr." + name: value}
	for k, v := range m.PAXRecords {
		records[k] = v
	}
	m.PAXRecords = records
	return m
}

// stream is a complete layer.
func stream(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := m.Header
		h.Format = tar.FormatPAX
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if h.ModTime.IsZero() {
			h.ModTime = stamp
		}
		h.Size = int64(len(m.content))
		must(t, w.WriteHeader(&h))
		_, err := io.WriteString(w, m.content)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// apply unpacks members into dir, and fails the test if that fails.
func apply(t testing.TB, dir string, o tarlayer.ApplyOptions, members ...member) tarlayer.ApplyResult {
	t.Helper()
	res, err := tryApply(t, dir, o, stream(t, members...))
	must(t, err)
	return res
}

func tryApply(t testing.TB, dir string, o tarlayer.ApplyOptions, stream []byte) (tarlayer.ApplyResult, error) {
	t.Helper()
	return tarlayer.Apply(t.Context(), open(t, dir), bytes.NewReader(stream), o)
}

func take(t testing.TB, dir string) *fingerprint.Tree {
	t.Helper()
	tree, err := fingerprint.Take(dir, fingerprint.Options{Fields: fingerprint.Default | fingerprint.Holes})
	must(t, err)
	return tree
}

// same fails the test if two trees differ in fields.
func same(t testing.TB, a, b *fingerprint.Tree, fields fingerprint.Field) {
	t.Helper()
	if diff := fingerprint.Diff(a, b, fields); diff != nil {
		t.Errorf("trees differ:\n%s", fingerprint.Format(diff, 20))
	}
}

// paths lists what is beneath dir.
func paths(t testing.TB, dir string) []string {
	t.Helper()
	return slices.DeleteFunc(take(t, dir).Paths(), func(p string) bool { return p == "." })
}

func content(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

func lstat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	return st
}

func xattr(path, name string) string {
	buf := make([]byte, 1<<16)
	n, err := unix.Lgetxattr(path, name, buf)
	if err != nil {
		return "no " + name + ": " + err.Error()
	}
	return string(buf[:n])
}

// want fails the test if got is not what was expected.
func want[T comparable](t testing.TB, what string, got, expected T) {
	t.Helper()
	if got != expected {
		t.Errorf("%s is %v, want %v", what, got, expected)
	}
}

func wantPaths(t testing.TB, dir string, expected ...string) {
	t.Helper()
	if got := paths(t, dir); !slices.Equal(got, expected) {
		t.Errorf("tree is %q, want %q", got, expected)
	}
}

// mutator makes changes through hook, one after the other.
func mutator(hook func(op string) error) *sys.Mutator {
	var mu sync.Mutex
	return &sys.Mutator{Hook: func(op string) error {
		mu.Lock()
		defer mu.Unlock()
		return hook(op)
	}}
}

// readMembers writes paths of src as added and calls f for each header of the stream.
func readMembers(t *testing.T, src tarlayer.Source, o tarlayer.WriteOptions, paths []string, f func(*tar.Header)) {
	t.Helper()
	var changes []tarlayer.Change
	for _, p := range paths {
		changes = append(changes, tarlayer.Change{Path: p, Kind: tarlayer.Add})
	}
	var b bytes.Buffer
	must(t, tarlayer.Write(t.Context(), &b, src, changes, o))
	r := tar.NewReader(&b)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		must(t, err)
		f(h)
	}
}

// pax is one record of an extended header.
func pax(key, value string) string {
	n := len(key) + len(value) + 3
	for size := n + 1; ; size++ {
		if len(strconv.Itoa(size))+n == size {
			return strconv.Itoa(size) + " " + key + "=" + value + "\n"
		}
	}
}

// rawMember is a member in ustar form, whatever archive/tar thinks of its type.
func rawMember(t testing.TB, typ byte, name string, data []byte) []byte {
	t.Helper()
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x00%011o\x00", len(data), stamp.Unix()))
	copy(h[148:], "        ")
	h[156] = typ
	copy(h[257:], "ustar\x0000")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	h = append(h, data...)
	return append(h, make([]byte, -len(data)&511)...)
}

func compressed(t testing.TB, c tarlayer.Compression, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := tarlayer.Compress(&b, c, 0)
	must(t, err)
	_, err = w.Write(data)
	must(t, err, w.Close())
	return b.Bytes()
}
