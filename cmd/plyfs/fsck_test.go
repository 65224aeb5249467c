package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/internal/testenv"
)

const fsckLayers = "upperdir=upper,workdir=work,lowerdir=lower"

// fsckTree makes layers with one needless whiteout, one metadata-only copy without data, and one on a directory.
func fsckTree(t *testing.T) string {
	t.Helper()
	dir := testenv.Scratch(t)
	mkdirs(t, dir, "lower", "upper/dir", "work")
	write(t, "data", dir, "upper/lost")
	for _, err := range []error{
		unix.Mknod(filepath.Join(dir, "upper/gone"), unix.S_IFCHR, 0),
		unix.Setxattr(filepath.Join(dir, "upper/lost"), ovl.Trusted().Metacopy, nil, 0),
		unix.Setxattr(filepath.Join(dir, "upper/dir"), ovl.Trusted().Metacopy, nil, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestFsckLines: each finding is a line, and the exit code that of fsck(8).
func TestFsckLines(t *testing.T) {
	dir := fsckTree(t)
	r := runIn(t, dir, "plyfs", "fsck", "-o", fsckLayers)
	lines := strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n")
	if r.code != fsckLeft || r.stderr != "" || len(lines) != 4 || lines[3] != "4 objects in 2 directories: 2 errors, 1 note" {
		t.Fatalf("code %d, %q\n%s", r.code, r.stderr, r.stdout)
	}
	for _, want := range []string{
		"note whiteout-without-victim upper:gone is a whiteout, and no lower has gone; --repair removes it",
		"error metacopy-not-regular upper:dir is marked as a metadata-only copy, and is no regular file; --repair takes the mark off",
		"error metacopy-without-data upper:lost ",
	} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no line %q in\n%s", want, r.stdout)
		}
	}
	r = runIn(t, dir, "plyfs", "fsck", "-q", fsckLayers)
	if r.code != fsckLeft || strings.Contains(r.stdout, "whiteout-without-victim") {
		t.Errorf("quiet: code %d\n%s", r.code, r.stdout)
	}
	r = runIn(t, dir, "plyfs", "fsck", "--repair", "-o", "upperdir=upper,workdir=work", "-o", "lowerdir=lower,noatime")
	if r.code != fsckCorrected|fsckLeft || !strings.Contains(r.stdout, "2 errors (1 repaired), 1 note (1 repaired)") ||
		!strings.Contains(r.stdout, "; repaired: removes it") {
		t.Errorf("repair: code %d, %q\n%s", r.code, r.stderr, r.stdout)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "upper/lost")); err != nil || string(got) != "data" {
		t.Errorf("the file without data: %q, %v", got, err)
	}
	write(t, "data", dir, "lower/lost")
	if r = runIn(t, dir, "plyfs", "fsck", "-o", fsckLayers); r.code != fsckClean {
		t.Errorf("with the data back: code %d\n%s", r.code, r.stdout)
	}
}

// TestFsckJSON: the output is one object, also of names that are not UTF-8, and none that could move a cursor in a
// line.
func TestFsckJSON(t *testing.T) {
	dir := fsckTree(t)
	name := "bad\xff\x1b[2J"
	if err := unix.Mknod(filepath.Join(dir, "upper", name), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	r := runIn(t, dir, "plyfs", "fsck", "--json", "-o", fsckLayers)
	var out struct {
		Findings []fsckFinding
		Summary  fsckSummary
	}
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || r.code != fsckLeft {
		t.Fatalf("code %d, %v in\n%s", r.code, err, r.stdout)
	}
	if out.Summary.Errors != 2 || out.Summary.Notes != 2 || len(out.Findings) != 4 || out.Summary.Skipped == nil {
		t.Errorf("%+v", out)
	}
	found := false
	for _, f := range out.Findings {
		found = found || string(f.PathBytes) == name
	}
	if !found {
		t.Errorf("no path_bytes of %q in %+v", name, out.Findings)
	}
	if r = runIn(t, dir, "plyfs", "fsck", fsckLayers); strings.Contains(r.stdout, "\x1b") || !strings.Contains(r.stdout, `\xff\x1b`) {
		t.Errorf("lines: %q", r.stdout)
	}
}

// TestFsckMounted: layers in use are refused, but with -n.
func TestFsckMounted(t *testing.T) {
	dir := unionTree(t)
	const layers = "lowerdir=lower,upperdir=upper,workdir=work"
	mustMount(t, dir, "plyfs", "mount", "-o", layers, "merged")
	shell(t, dir, "echo x > merged/new")
	for _, flag := range []string{"--repair", "-q"} {
		r := runIn(t, dir, "plyfs", "fsck", flag, "-o", layers)
		if r.code != fsckFailed || !strings.Contains(r.stderr, "in use by a mount; unmount it, or add -n") {
			t.Errorf("%s: code %d, %q", flag, r.code, r.stderr)
		}
	}
	r := runIn(t, dir, "plyfs", "fsck", "-n", "--json", "-o", layers)
	var out struct{ Summary fsckSummary }
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || r.code != fsckClean || len(out.Summary.Skipped) != 1 {
		t.Errorf("-n: code %d, %q, %v\n%s", r.code, r.stderr, err, r.stdout)
	}
	shell(t, dir, "umount merged")
	waitGone(t, dir)
	if r := runIn(t, dir, "plyfs", "fsck", "-o", layers); r.code != fsckClean {
		t.Errorf("after the unmount: code %d, %q\n%s", r.code, r.stderr, r.stdout)
	}
}

// TestFsckCountsOne: one of a thing is not many.
func TestFsckCountsOne(t *testing.T) {
	dir := testenv.Scratch(t)
	mkdirs(t, dir, "empty")
	if r := runIn(t, dir, "plyfs", "fsck", "-o", "upperdir=empty"); !strings.HasSuffix(r.stdout, "\n1 object in 1 directory: 0 errors, 0 notes\n") {
		t.Errorf("%+v", r)
	}
}

// TestFsckRefuses: bad command lines and layers.
func TestFsckRefuses(t *testing.T) {
	dir := fsckTree(t)
	for _, tt := range []struct {
		args string
		code int
		want string
	}{
		{"", fsckUsage, "no upperdir given; usage: "},
		{"--repair -n -o " + fsckLayers, fsckUsage, "give one of the two"},
		{"--repair upperdir=upper", fsckUsage, "no workdir given"},
		{"upperdir=upper --repair", fsckUsage, "flag --repair stands behind the options"},
		{"uperdir=upper", fsckUsage, "unknown option uperdir=upper; did you mean upperdir?"},
		{"--fix upperdir=upper", fsckUsage, "usage: plyfs fsck"},
		{"upperdir=none", fsckFailed, "upperdir=none: no such file or directory"},
		{"upperdir=upper,lowerdir=upper", fsckFailed, "are the same directory"},
	} {
		r := runIn(t, dir, "plyfs", append([]string{"fsck"}, strings.Fields(tt.args)...)...)
		if r.code != tt.code || !strings.Contains(r.stderr, tt.want) || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%q: code %d, %q; want %d, %q", tt.args, r.code, r.stderr, tt.code, tt.want)
		}
	}
}
