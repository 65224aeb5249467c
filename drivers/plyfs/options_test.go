package plyfs

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"plyfs/drivers"
	"plyfs/drivers/internal/overlaystore"
	"plyfs/fs/mountopt"
	"plyfs/internal/testenv"
)

func TestOptions(t *testing.T) {
	for name, c := range map[string]struct {
		in      map[string]string
		invalid string // is in the error's text
	}{
		"none":             {nil, ""},
		"all":              {map[string]string{"mountopt": "volatile,data=noopen", "index": "off", "mount_program": "/bin/plyfs", "ignore_chown_errors": ""}, ""},
		"unknown":          {map[string]string{"size": "1"}, "unknown option size"},
		"unknown of mount": {map[string]string{"mountopt": "volatil"}, "volatil"},
		"bad value":        {map[string]string{"mountopt": "metacopy=perhaps"}, "metacopy"},
		"bad index":        {map[string]string{"index": "sometimes"}, "index"},
		"relative program": {map[string]string{"mount_program": "plyfs"}, "absolute"},
		"layers":           {map[string]string{"mountopt": "lowerdir=/etc"}, "lowerdir"},
		"upper":            {map[string]string{"mountopt": "upperdir=/etc"}, "upperdir"},
		"read-only":        {map[string]string{"mountopt": "ro"}, "ro"},
		"label":            {map[string]string{"mountopt": `context="a,b"`}, "context"},
	} {
		_, err := parseOptions(c.in)
		if (err != nil) != (c.invalid != "") || err != nil && (!errors.Is(err, drivers.ErrInvalid) || !strings.Contains(err.Error(), c.invalid)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPlan(t *testing.T) {
	rw := overlaystore.Stack{Home: "/h", Lowers: []string{"l/A", "l/B"}, Upper: "c/diff", Work: "c/work"}
	odd, bounded, image := rw, rw, rw
	odd.Home, odd.Label = "/h:1,2", "a:b:c0,c1"
	bounded.Quota = drivers.Quota{Bytes: 1 << 20, Inodes: 7}
	image.Upper, image.Work = "", ""
	for name, c := range map[string]struct {
		k    overlaystore.Stack
		opts map[string]string
		want []string // besides the layers
	}{
		"writable":   {rw, nil, nil},
		"odd":        {odd, nil, nil},
		"options":    {rw, map[string]string{"mountopt": "volatile", "index": "off"}, []string{"index=off", "volatile"}},
		"quota":      {bounded, nil, []string{"quota_bytes=1048576", "quota_inodes=7"}},
		"image":      {image, map[string]string{"mountopt": "volatile"}, []string{"ro"}},
		"no program": {rw, map[string]string{"mount_program": "/bin/fuse-overlayfs"}, nil},
	} {
		o, err := parseOptions(c.opts)
		must(t, err)
		m := (&mounter{opts: o, helper: Name}).Plan(c.k)
		if m.Type != "fuse3.plyfs" || m.Source != "plyfs" || m.Target != "" {
			t.Errorf("%s: %+v", name, m)
		}
		var rest []string
		for _, w := range m.Options {
			key, _, _ := strings.Cut(w, "=")
			if key != "lowerdir" && key != "upperdir" && key != "workdir" && key != "context" {
				rest = append(rest, w)
			}
		}
		slices.Sort(rest)
		if !slices.Equal(rest, c.want) {
			t.Errorf("%s: options %q, want %q beside the layers", name, m.Options, c.want)
		}
		back, err := mountopt.Parse(m.Options...)
		must(t, err)
		lowers := []string{c.k.Home + "/l/A", c.k.Home + "/l/B"}
		if !slices.Equal(back.LowerDirs, lowers) || back.Context != c.k.Label || c.k.Upper != "" && back.UpperDir != c.k.Path(c.k.Upper) {
			t.Errorf("%s: the mount program reads %+v", name, back)
		}
	}
}

func TestResolveProgram(t *testing.T) {
	dir := testenv.Scratch(t)
	t.Setenv("PATH", dir)
	_, err := resolveProgram("")
	wants(t, "nothing installed", err, drivers.ErrPrerequisites)
	_, err = resolveProgram(filepath.Join(dir, "plyfs"))
	wants(t, "a program that is not there", err, drivers.ErrPrerequisites)
	must(t, os.WriteFile(filepath.Join(dir, "plyfs"), nil, 0o644))
	_, err = resolveProgram(filepath.Join(dir, "plyfs"))
	wants(t, "a file that is no program", err, drivers.ErrPrerequisites)
	must(t, os.Chmod(filepath.Join(dir, "plyfs"), 0o755))
	if got, err := resolveProgram(""); err != nil || got != filepath.Join(dir, "plyfs") {
		t.Errorf("in PATH: %q, %v", got, err)
	}
}

// TestOtherProgram: a program of the name fuse-overlayfs is run as containers/storage runs it.
func TestOtherProgram(t *testing.T) {
	base := testenv.Scratch(t)
	program := filepath.Join(base, "fuse-overlayfs")
	must(t, os.Symlink(testenv.Binary(t), program))
	d := newDriver(t, base, map[string]string{"mount_program": program})
	ctx := t.Context()
	err := d.CreateReadWrite(ctx, "bounded", "", &drivers.CreateOptions{Quota: drivers.Quota{Bytes: 1 << 20}})
	wants(t, "a quota that nobody enforces", err, drivers.ErrNotSupported)
	must(t, d.CreateReadWrite(ctx, "c", "", nil))
	root, err := d.Get(ctx, "c", nil)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(root, "f"), []byte("f"), 0o644))
	must(t, d.Put(ctx, "c"))
	if b, err := os.ReadFile(filepath.Join(base, "home/c/diff/f")); err != nil || string(b) != "f" {
		t.Errorf("the upper holds %q, %v", b, err)
	}
	must(t, os.RemoveAll(filepath.Join(base, "home/c/work")))
	if _, err = d.Get(ctx, "c", nil); err == nil || !strings.Contains(err.Error(), "workdir") {
		t.Errorf("a failing program: %v", err)
	}
}
