package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/e2e/listing"
	"plyfs/internal/testenv"
)

// TestMountProgramRootless runs the contract tests as root of a user namespace, which is what a rootless engine is when
// it calls its mount program.
func TestMountProgramRootless(t *testing.T) {
	testenv.RunInUserNamespace(t, "^TestMountProgram$")
}

// TestMountProgram plays the part of containers/storage: the argument strings are those that its overlay driver makes.
func TestMountProgram(t *testing.T) {
	im := testImage(nil)
	home := filepath.Join(testenv.Scratch(t), "graphroot", "overlay")
	s, err := newStore(home, im)
	if err != nil {
		t.Fatal(err)
	}
	c := &contract{store: s, image: im, program: newProgram(t, home), want: listing.Lines(im.entries("data"))}
	t.Run("version", c.version)
	t.Run("run", c.run)
	t.Run("run volatile", c.volatile)
	t.Run("read-only base layer", c.base)
	t.Run("keep-id", c.keepID)
	t.Run("squash", c.squash)
	t.Run("overlay volume", c.volume)
	t.Run("commit of a running container", c.commit)
	t.Run("500 lowers", c.manyLowers)
	t.Run("missing lower", c.missing)
}

// contract is a store and the program that mounts its layers.
type contract struct {
	store   *store
	image   *image
	program *program
	want    []string
}

// container makes a container's directories.
func (c *contract) container(t *testing.T) string {
	t.Helper()
	id, err := c.store.create(t.Name())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// options returns the driver's option string for a container on all layers.
func (c *contract) options(id string) string {
	return "lowerdir=" + c.store.lowers(len(c.store.ids)) + ",upperdir=" + c.store.path(id, "diff") +
		",workdir=" + c.store.path(id, "work")
}

func (c *contract) version(t *testing.T) {
	cmd := newCommand(c.program.path, "--version")
	out, err := cmd.Output()
	if err != nil || !strings.Contains("\n"+string(out), "\nfuse-overlayfs: version ") {
		t.Errorf("--version: %v, printed %q", err, out)
	}
}

// run is podman run: mount, work, unmount, and the read-only view of the result that diff and commit take.
func (c *contract) run(t *testing.T) {
	id := c.container(t)
	merged := c.store.path(id, "merged")
	c.program.mount(t, c.options(id)+",", merged)
	checkTree(t, "the union", merged, "data", c.want)

	for _, err := range []error{
		os.WriteFile(filepath.Join(merged, "data/made"), []byte("made\n"), 0o644),
		appendTo(filepath.Join(merged, "data/top"), "more\n"),
		os.Remove(filepath.Join(merged, "data/f40")),
		os.RemoveAll(filepath.Join(merged, "data/op")),
		os.Mkdir(filepath.Join(merged, "data/op"), 0o755),
		os.Rename(filepath.Join(merged, "data/h4_a"), filepath.Join(merged, "data/moved")),
		os.Chmod(filepath.Join(merged, "data/caps"), 0o700),
		os.Link(filepath.Join(merged, "data/h2_a"), filepath.Join(merged, "data/h2_d")),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	after, err := listing.Walk(merged, "data")
	if err != nil {
		t.Fatal(err)
	}
	unmount(t, merged)
	if text, err := os.ReadFile(c.store.path(id, "diff/data/made")); err != nil || string(text) != "made\n" {
		t.Errorf("the upper after the unmount: %q, %v", text, err)
	}

	c.program.mount(t, "lowerdir="+c.store.path(id, "diff")+":"+c.store.lowers(len(c.store.ids)), merged)
	// Without the work directory nothing says that names in a lower belong to a copied-up hard link.
	got, err := listing.Walk(merged, "data")
	if err != nil {
		t.Fatal(err)
	}
	checkLines(t, "the read-only view of the container", without(after, "/h2_"), without(got, "/h2_"))
	if err := os.WriteFile(filepath.Join(merged, "data/new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write without an upperdir: %v, want EROFS", err)
	}
	unmount(t, merged)

	c.program.mount(t, c.options(id)+",", merged)
	checkTree(t, "the container, mounted again", merged, "data", after)
	unmount(t, merged)
}

// volatile is podman run --rm; the doubled comma is the driver's.
func (c *contract) volatile(t *testing.T) {
	id := c.container(t)
	merged := c.store.path(id, "merged")
	c.program.mount(t, c.options(id)+",,volatile", merged)
	checkTree(t, "the union", merged, "data", c.want)
	if err := appendTo(filepath.Join(merged, "data/top"), "more\n"); err != nil {
		t.Error(err)
	}
	unmount(t, merged)
	// The driver removes the marker of a volatile mount before it mounts again.
	_ = os.RemoveAll(c.store.path(id, "work/work/incompat/volatile"))
	c.program.mount(t, c.options(id)+",,volatile,fsync=0", merged)
	text, err := os.ReadFile(filepath.Join(merged, "data/top"))
	if err != nil || string(text) != "40\nmore\n" {
		t.Errorf("data/top after a second volatile mount: %q, %v", text, err)
	}
	unmount(t, merged)
}

// base is the view of a layer that has no lower.
func (c *contract) base(t *testing.T) {
	id := c.store.ids[0]
	merged := c.store.path(id, "merged")
	c.program.mount(t, "lowerdir="+c.store.path(id, "diff")+":"+c.store.path(id, "empty"), merged)
	want, err := listing.Walk(c.store.path(id, "diff"), "data")
	if err != nil {
		t.Fatal(err)
	}
	checkTree(t, "the base layer", merged, "data", want)
	unmount(t, merged)
}

// keepID maps ids as podman run --userns=keep-id of user 1004 does, with the driver's leading colon.
func (c *contract) keepID(t *testing.T) {
	const m = "=:0:1:1004:1004:0:1:1005:1005:64531"
	id := c.container(t)
	merged := c.store.path(id, "merged")
	c.program.mount(t, c.options(id)+",volatile,uidmapping"+m+",gidmapping"+m, merged)
	shift := func(n uint32) uint32 {
		switch {
		case n < 1004:
			return n + 1
		case n == 1004:
			return 0
		}
		return n
	}
	entries := c.image.entries("data")
	for i := range entries {
		entries[i].UID, entries[i].GID = shift(entries[i].UID), shift(entries[i].GID)
	}
	checkTree(t, "the mapped union", merged, "data", listing.Lines(entries))

	made := filepath.Join(merged, "data/made")
	if err := errors.Join(os.WriteFile(made, nil, 0o644), os.Mkdir(made+"dir", 0o755), os.Chown(made+"dir", 1, 6)); err != nil {
		t.Fatal(err)
	}
	checkOwner(t, made, 0, 0)
	checkOwner(t, c.store.path(id, "diff/data/made"), 1004, 1004)
	checkOwner(t, c.store.path(id, "diff/data/madedir"), 0, 5)
	unmount(t, merged)
}

// squash shows all objects as one owner's.
func (c *contract) squash(t *testing.T) {
	id := c.container(t)
	merged := c.store.path(id, "merged")
	c.program.mount(t, c.options(id)+",volatile,squash_to_uid=1234,squash_to_gid=1235", merged)
	checkOwner(t, filepath.Join(merged, "data/top"), 1234, 1235)
	checkOwner(t, filepath.Join(merged, "data/private/key"), 1234, 1235)
	unmount(t, merged)
}

// volume is podman run -v SRC:DST:O, with a colon in the name of the source.
func (c *contract) volume(t *testing.T) {
	dir := testenv.Scratch(t)
	src := filepath.Join(dir, "so:urce")
	for _, d := range []string{src, filepath.Join(dir, "upper"), filepath.Join(dir, "work"), filepath.Join(dir, "merge")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(src, "file"), []byte("source\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	merge := filepath.Join(dir, "merge")
	c.program.mount(t, "lowerdir="+strings.ReplaceAll(src, ":", `\:`)+",upperdir="+filepath.Join(dir, "upper")+
		",workdir="+filepath.Join(dir, "work")+",private", merge)
	if err := appendTo(filepath.Join(merge, "file"), "changed\n"); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{
		filepath.Join(src, "file"): "source\n", filepath.Join(merge, "file"): "source\nchanged\n",
		filepath.Join(dir, "upper/file"): "source\nchanged\n",
	} {
		if text, err := os.ReadFile(p); err != nil || string(text) != want {
			t.Errorf("%s: %q, %v, want %q", p, text, err, want)
		}
	}
	testenv.Unmount(t, merge)
}

// commit mounts the upper of a live container a second time, read-only, as dockerd 29 does, while the container has a
// file open that it has written and not synced.
func (c *contract) commit(t *testing.T) {
	id := c.container(t)
	merged := c.store.path(id, "merged")
	c.program.mount(t, c.options(id), merged)
	f, err := os.Create(filepath.Join(merged, "data/dirty"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 10 {
		if _, err := f.Write(make([]byte, 65536)); err != nil {
			t.Fatal(err)
		}
	}
	if err := appendTo(filepath.Join(merged, "data/shared/s0"), "tail"); err != nil {
		t.Fatal(err)
	}
	want, err := listing.Walk(merged, "data")
	if err != nil {
		t.Fatal(err)
	}
	second := c.store.path(id, "second")
	if err := os.Mkdir(second, 0o755); err != nil {
		t.Fatal(err)
	}
	c.program.mount(t, "ro,"+c.options(id), second)
	checkTree(t, "the second mount", second, "data", want)
	if err := os.WriteFile(filepath.Join(second, "data/new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a mount with ro and an upperdir: %v, want EROFS", err)
	}
	unmount(t, second)
	// The first mount has to go on as if nothing had been.
	if err := appendTo(filepath.Join(merged, "data/top"), "still here\n"); err != nil {
		t.Errorf("write after the second mount is gone: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	unmount(t, merged)
}

// manyLowers has as many layers as the driver allows, so that the option string is far longer than a page.
func (c *contract) manyLowers(t *testing.T) {
	id := c.container(t)
	merged := c.store.path(id, "merged")
	var above []string
	for i := len(c.store.ids); i < 500; i++ {
		layer, err := c.store.create(fmt.Sprintf("layer %d", i))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(c.store.path(layer, fmt.Sprintf("diff/n%d", i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		above = append(above, filepath.Join(c.store.home, "l", link(layer)))
	}
	options := strings.Replace(c.options(id), "lowerdir=", "lowerdir="+strings.Join(above, ":")+":", 1)
	c.program.mount(t, options+",", merged)
	names, err := os.ReadDir(merged)
	if err != nil || len(names) != len(above)+1 {
		t.Errorf("the root has %d names, %v, want %d", len(names), err, len(above)+1)
	}
	checkTree(t, "the union of 500", merged, "data", c.want)
	unmount(t, merged)
}

// missing is a layer whose directory is gone: the driver quotes standard error.
func (c *contract) missing(t *testing.T) {
	id := c.container(t)
	merged := c.store.path(id, "merged")
	options := strings.Replace(c.options(id), "lowerdir=", "lowerdir="+filepath.Join(c.store.home, "l/NOSUCHLAYER")+":", 1)
	stderr, err := c.program.start("-o", options, merged)
	if err == nil || strings.TrimSpace(stderr) == "" {
		t.Errorf("mount with a missing lower: %v, stderr %q", err, stderr)
	}
	if isFuse(t, merged) {
		t.Error("mounted all the same")
		unmount(t, merged)
	}
}

func appendTo(p, text string) error {
	f, err := os.OpenFile(p, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func checkOwner(t *testing.T, p string, uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		t.Error(err)
	} else if st.Uid != uid || st.Gid != gid {
		t.Errorf("owner of %s: %d:%d, want %d:%d", p, st.Uid, st.Gid, uid, gid)
	}
}

// without returns the lines of a listing whose path does not contain part.
func without(lines []string, part string) []string {
	var out []string
	for _, l := range lines {
		if name, _, _ := strings.Cut(l, " "); !strings.Contains(name, part) {
			out = append(out, l)
		}
	}
	return out
}
