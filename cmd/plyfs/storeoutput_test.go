package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// pushLayer makes an image of one layer, an empty file of that name, in the registry.
func (r *storeRun) pushLayer(repo, member string) {
	r.t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: member, Mode: 0o644}); err != nil {
		r.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		r.t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer(b.Bytes(), types.DockerUncompressedLayer))
	if err != nil {
		r.t.Fatal(err)
	}
	r.pushImage(repo, img)
}

// TestStoreLateHelp: help is shown wherever it is asked for, and nothing else done.
func TestStoreLateHelp(t *testing.T) {
	r := newStoreRun(t)
	r.ok("container", "create", "scratch", "c1")
	for _, help := range []string{"--help", "-h"} {
		if got := r.ok("container", "rm", "c1", help); !strings.Contains(got, "plyfs container rm [--force] NAME...") {
			t.Errorf("%s: %s", help, got)
		}
	}
	if got := r.ok("container", "ls"); !strings.Contains(got, "c1") {
		t.Errorf("ls:\n%s", got)
	}
	r.ok("container", "rm", "c1")
}

// TestUsageErrors: a command line that makes no sense is answered in one line, with the code of the command.
func TestUsageErrors(t *testing.T) {
	for args, code := range map[string]int{
		"umount --bogus /m": exitUsage, "version --bogus": exitUsage, "completion --bogus bash": storeUsage, "bench --bogus": 1,
		"bench store --bogus": 1, "bench engines --bogus": 1, "top --bogus": exitUsage, "image ls --bogus": storeUsage,
	} {
		res := runIn(t, t.TempDir(), "plyfs", strings.Fields(args)...)
		if res.code != code || res.stdout != "" || strings.Count(res.stderr, "\n") != 1 || !strings.Contains(res.stderr, "bogus") {
			t.Errorf("%s: exit code %d, want %d; %q, %q", args, res.code, code, res.stdout, res.stderr)
		}
	}
}

// TestStoreInvalidLayer: a layer that makes no sense is damage, as an archive that makes none is.
func TestStoreInvalidLayer(t *testing.T) {
	r := newStoreRun(t)
	r.pushLayer("bad:1", "d/.wh..")
	if res := r.plyfs("image", "pull", r.host+"/bad:1"); res.code != storeDamaged || !strings.Contains(res.stderr, "d/.wh..") {
		t.Errorf("exit code %d, want %d: %s", res.code, storeDamaged, res.stderr)
	}
}

// TestStoreFullOutput: what can't be printed is said, also by commands that did what they should.
func TestStoreFullOutput(t *testing.T) {
	r := newStoreRun(t)
	r.push("app:1", 1)
	app := r.host + "/app:1"
	r.ok("image", "pull", app)
	r.ok("container", "create", "scratch", "c1")
	write(t, "content", r.ok("container", "mount", "c1"), "new")
	r.ok("container", "umount", "c1")
	r.ok("image", "tag", app, "other:1")
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, args := range []string{
		"image ls", "image pull -q " + app, "image push -q " + app, "image export -q -o out.tar " + app, "image history " + app,
		"image inspect " + app, "image rm other:1", "layer ls", "layer changes " + app, "layer verify", "layer check", "layer gc",
		"layer export " + app, "container ls", "container changes c1", "container diff c1", "container commit c1", "driver ls",
		"driver probe vfs", "driver status", "container changes --json c1",
	} {
		cmd := r.command(strings.Fields(args)...)
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = full, &stderr
		err := cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != storeNoSpace || !strings.Contains(stderr.String(), unix.ENOSPC.Error()) {
			t.Errorf("%s: exit code %d, %v, %q", args, code, err, stderr.String())
		}
	}
}

// TestDriverProbeOne: what is said of one driver is what is said of it among all.
func TestDriverProbeOne(t *testing.T) {
	r := newStoreRun(t)
	type report struct {
		Driver string `json:"driver"`
		Chosen bool   `json:"chosen"`
	}
	all := fromJSON[[]report](t, r.plyfs("driver", "probe", "--json"), 0)
	for _, one := range all {
		res := r.plyfs("driver", "probe", "--json", one.Driver)
		if got := fromJSON[[]report](t, res, res.code); len(got) != 1 || got[0] != one {
			t.Errorf("probe %s: %+v, among all %+v", one.Driver, got, one)
		}
	}
}

// TestStorePathBytes: JSON has the bytes of a path that is not UTF-8 beside what can be said of it.
func TestStorePathBytes(t *testing.T) {
	r := newStoreRun(t)
	r.ok("container", "create", "scratch", "c1")
	root := r.ok("container", "mount", "c1")
	for _, name := range []string{"a", "b\xff"} {
		write(t, "", root, name)
	}
	r.ok("container", "umount", "c1")
	var lines []struct {
		Path  string `json:"path"`
		Bytes []byte `json:"path_bytes"`
	}
	if err := json.Unmarshal([]byte(r.ok("container", "changes", "--json", "c1")), &lines); err != nil {
		t.Fatal(err)
	}
	if len(lines) != 2 || lines[0].Path != "/a" || lines[0].Bytes != nil || string(lines[1].Bytes) != "/b\xff" {
		t.Errorf("%+v", lines)
	}
}

// TestStoreOutputFile: a file that is written has the mode that the umask leaves, or that of the file in whose place it comes, and
// comes where a symlink leads.
func TestStoreOutputFile(t *testing.T) {
	r := newStoreRun(t)
	r.push("app:1", 1)
	app := r.host + "/app:1"
	r.ok("image", "pull", app)
	at := func(file string) string { return filepath.Join(r.home, file) }
	write(t, "old", at("old"))
	write(t, "old", at("real"))
	for _, err := range []error{
		os.Chmod(at("old"), 0o640), os.Chmod(at("real"), 0o604), os.Symlink("real", at("link")), os.Symlink("nowhere", at("dangling")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args, file string
		mode       os.FileMode
	}{
		{"layer export -o layer.tar", "layer.tar", 0o640},
		{"image export -o image.tar", "image.tar", 0o640},
		{"image export --format oci -o layout", "layout", os.ModeDir | 0o750},
		{"layer export -o old", "old", 0o640},
		{"layer export -o link", "real", 0o604},
		{"layer export -o dangling", "dangling", 0o640},
	} {
		cmd := r.command(append(strings.Fields(c.args), app)...)
		cmd.Args = slices.Concat([]string{"sh", "-c", `umask 027 && exec "$@"`, "sh"}, []string{cmd.Path}, cmd.Args[1:])
		cmd.Path = "/bin/sh"
		if res := finish(t, cmd); res.code != 0 {
			t.Errorf("%s: %s", c.args, res.stderr)
			continue
		}
		if fi, err := os.Lstat(at(c.file)); err != nil || fi.Mode() != c.mode || fi.Size() <= int64(len("old")) {
			t.Errorf("%s: mode %v of %d bytes, %v; want %v", c.args, fi.Mode(), fi.Size(), err, c.mode)
		}
	}
	if to, err := os.Readlink(at("link")); err != nil || to != "real" {
		t.Errorf("the symlink: %q, %v", to, err)
	}
	for _, args := range []string{"layer export -o none/out", "image export -o none/out", "image export --format oci -o none/out"} {
		res := r.plyfs(append(strings.Fields(args), app)...)
		if res.code != storeNotFound || !strings.Contains(res.stderr, "none/out: directory none: not found") {
			t.Errorf("%s: exit code %d, %s", args, res.code, res.stderr)
		}
	}
	if names, err := filepath.Glob(at(".plyfs-export-*")); err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}

// TestStorePushByID: an id is no name to push to.
func TestStorePushByID(t *testing.T) {
	r := newStoreRun(t)
	r.push("app:1", 1)
	app := r.host + "/app:1"
	id := strings.TrimPrefix(r.ok("image", "pull", app), "sha256:")[:12]
	if res := r.plyfs("image", "push", "-q", id); res.code != storeUsage || !strings.Contains(res.stderr, "plyfs image push "+id+" NAME") {
		t.Errorf("exit code %d, %s", res.code, res.stderr)
	}
	r.ok("image", "push", "-q", id, r.host+"/again:1")
	r.ok("image", "push", "-q", app)
}
