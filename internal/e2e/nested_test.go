//go:build engines

package e2e

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/e2e/listing"
)

// nestedPage is the page of docs whose commands are tested here.
const nestedPage = "nested.md"

// nestedCase is a block of docs/nested.md, what runs in the outer container that it starts, and as whom.
type nestedCase struct {
	block string
	outer string // the outer engine that only it has, if not every podman
	inner string // command line of the inner engine
	user  string
	// lost matches what the inner storage driver does not keep wherever it runs.
	lost *regexp.Regexp
	// hides says that the inner storage driver's diff does not name what a new directory hides.
	hides bool
	short bool
}

func nestedCases() []nestedCase {
	// fuse-overlayfs 1.10 forgets link counts, and, in a diff and so in a commit, what was in a directory that was made anew.
	links := regexp.MustCompile(` nlink \d+|^"data/op/after33".*`)
	return []nestedCase{
		{block: "docker-on-plyfs", inner: "docker", user: "root", short: true},
		{block: "docker-on-overlay2", inner: "docker", user: "root"},
		{block: "docker-on-fuse-overlayfs", inner: "docker", user: "root", lost: links, hides: true},
		{block: "docker-on-vfs", inner: "docker", user: "root", lost: regexp.MustCompile(` user\.\S+`)},
		{block: "docker-in-docker", outer: "docker", inner: "docker", user: "root"},
		{block: "podman-in-podman", inner: "podman", user: "root", short: true},
		{block: "podman-as-user-in-podman", inner: "podman", user: "user"},
		{block: "podman-on-overlay-in-podman", inner: "podman", user: "user", hides: true},
		{block: "podman-in-docker", outer: "docker", inner: "podman", user: "user"},
		{block: "docker-in-rootless-podman", outer: "rootless podman", inner: "docker", user: "root"},
		{block: "store-in-podman", inner: "plyfs", user: "root"},
	}
}

// TestNestedCommands checks that every block of docs/nested.md has a test, and every test a block.
func TestNestedCommands(t *testing.T) {
	var cases []string
	for _, c := range nestedCases() {
		cases = append(cases, c.block)
	}
	slices.Sort(cases)
	blocks := slices.Sorted(maps.Keys(docBlocks(t, nestedPage, "test")))
	if !slices.Equal(cases, blocks) {
		t.Errorf("docs/%s has the blocks %q, the tests are %q", nestedPage, blocks, cases)
	}
}

// TestNested runs the commands of docs/nested.md with podman of root outside, on plyfs, and works on in the engine that
// they start in the outer container.
func TestNested(t *testing.T) {
	n := newNested(t, newEngine(t, 0), "podman")
	for _, c := range nestedCases() {
		if c.outer != "" || testing.Short() && !c.short {
			continue
		}
		t.Run(c.block, func(t *testing.T) { n.follow(t, c) })
	}
}

// nested is an outer engine that has the images of docs/nested.md.
type nested struct {
	*engine
	outer  string // the outer engine's command
	blocks map[string]string
	want   []string
	brief  bool // another test has done with the same inner engine what takes long
}

// newNested gives an outer engine the image of engines and puts the other image where the commands look for it.
func newNested(t *testing.T, e *engine, outer string) *nested {
	t.Helper()
	n := &nested{engine: e, outer: outer, blocks: docBlocks(t, nestedPage, "test")}
	// dockerd makes it, and leaves it.
	t.Cleanup(func() { removeCgroups(t, "docker") })
	if err := os.Mkdir(e.path("images"), 0o755); err != nil {
		t.Fatal(err)
	}
	im := engineImage(t)
	im.writeDocker(t, e.path("images/layers.tar"), "localhost/layers:latest")
	n.want = listing.Lines(im.entries("data"))
	if err := os.Rename(e.path("treedump"), e.path("images/treedump")); err != nil {
		t.Fatal(err)
	}
	n.importEngines(t)
	return n
}

// importEngines has the outer engine take in the image of engines.
func (n *nested) importEngines(t *testing.T) {
	t.Helper()
	tree := hostEngines(t)
	tree.addPlyfs(t, docBlocks(t, nestedPage, "file"))
	path := n.path("engines.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(tree.write(f), f.Close()); err != nil {
		t.Fatalf("write the image of engines: %v", err)
	}
	n.engine.run(t, n.outer, "import", "-c", `ENTRYPOINT ["docker-init", "--"]`,
		"-c", "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", path, enginesImage)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// start follows a block of the page.
func (n *nested) start(t *testing.T, block string) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := n.try(n.outer, "logs", "--tail", "20", "outer")
			t.Logf("log of the outer container:\n%s", tail(logs, 20))
		}
		if _, err := n.try(n.outer, "rm", "-f", "outer"); err != nil {
			t.Errorf("remove the outer container: %v", err)
		}
	})
	n.engine.run(t, "sh", "-euc", n.blocks[block])
}

// follow follows a block and works on in the engine within.
func (n *nested) follow(t *testing.T, c nestedCase) {
	n.start(t, c.block)
	in := &nestedEngine{nested: n, nestedCase: c, want: keeps(n.want, c.lost)}
	if c.inner == "plyfs" {
		in.store(t)
		return
	}
	in.image(t)
	// The short form works in one container and builds one image.
	if testing.Short() && c.inner != "docker" {
		return
	}
	in.container(t)
	in.build(t)
	if n.brief || testing.Short() {
		return
	}
	in.commitOpen(t)
	in.save(t)
	in.parallel(t)
}

// keeps strips from a listing what a storage driver loses.
func keeps(lines []string, lost *regexp.Regexp) []string {
	if lost == nil {
		return lines
	}
	var out []string
	for _, l := range lines {
		if l = lost.ReplaceAllString(l, ""); l != "" {
			out = append(out, l)
		}
	}
	return out
}

// removeCgroups removes the cgroup that a daemon made at the root of every hierarchy, unless it is in use.
func removeCgroups(t *testing.T, name string) {
	t.Helper()
	dirs, err := filepath.Glob("/sys/fs/cgroup/*/" + name)
	if err != nil {
		t.Error(err)
	}
	for _, dir := range append(dirs, "/sys/fs/cgroup/"+name) {
		err := unix.Rmdir(dir)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			t.Errorf("remove the cgroup %s: %v", dir, err)
		}
	}
}
