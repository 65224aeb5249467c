package drivertest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/drivers/internal/copytree"
	"plyfs/internal/fingerprint"
)

func layerCases() []aCase {
	return []aCase{
		{"Layers", caseLayers},
		{"DeepLayerRead", caseDeepLayerRead},
		{"DeepLayerWrite", caseDeepLayerWrite},
	}
}

// findings are what was wrong, by scenario.
type findings map[string][]string

func (f findings) add(scenario, format string, args ...any) {
	f[scenario] = append(f[scenario], fmt.Sprintf(format, args...))
}

// addLines files lines that begin with a path under the scenario that the path belongs to.
func (f findings) addLines(what string, lines []string) {
	for _, l := range lines {
		// Odd paths are quoted.
		name := strings.TrimPrefix(l, `"`)
		if end := strings.IndexAny(name, "/:"); end >= 0 {
			name = name[:end]
		}
		f.add(name, "%s: %s", what, l)
	}
}

// caseLayers plays all scenarios, and compares at each layer: what a container sees with the oracle, before and after a
// restart of its mount; changes with those of the oracle and of the naive differ; what Diff and ApplyDiff make of it
// with the container.
func caseLayers(e *env) {
	all := scenarios()
	found := make(findings)
	oracle := filepath.Join(e.plain(), "oracle")
	e.must(os.Mkdir(oracle, 0o755))
	depth := 0
	for _, sc := range all {
		depth = max(depth, len(sc.layers))
	}
	parent := ""
	for i := range depth {
		parent = e.playLayer(all, i, parent, oracle, found)
	}
	names := []string{""}
	for _, sc := range all {
		names = append(names, sc.name)
	}
	for _, name := range names {
		e.report(name, found[name])
		delete(found, name)
	}
	for name, lines := range found {
		e.Errorf("%s, which is of no scenario: %s", name, lines)
	}
}

func (e *env) report(name string, lines []string) {
	if name == "" {
		for _, l := range lines {
			e.Error(l)
		}
		return
	}
	if why, differs := e.s.differs("Layers/" + name); differs {
		e.Logf("Layers/%s does not hold: %s", name, why)
		return
	}
	e.Run(name, func(t *testing.T) {
		if len(lines) > 0 {
			t.Error(fingerprint.Format(lines, 20))
		}
	})
}

// playLayer plays the i-th layer of all scenarios on top of parent, and returns the id of the image layer made of it.
func (e *env) playLayer(all []scenario, i int, parent, oracle string, found findings) (id string) {
	id, work := fmt.Sprintf("l%d", i), fmt.Sprintf("w%d", i)
	before := filepath.Join(filepath.Dir(oracle), "before-"+work)
	e.must(os.Mkdir(before, 0o755))
	copyTree(e, before, oracle)
	e.writable(work, parent)
	root := e.get(work)
	for _, sc := range all {
		if i >= len(sc.layers) {
			continue
		}
		for what, tree := range map[string]string{"oracle": oracle, "layer": root} {
			if err := play(filepath.Join(tree, sc.name), i, sc.layers[i]); err != nil {
				found.add(sc.name, "layer %d, in the %s: %v", i, what, err)
			}
		}
	}
	want := take(e, oracle)
	found.addLines(id+": expected != container", fingerprint.Diff(want, take(e, root), shown))
	e.put(work)
	root = e.get(work)
	written := take(e, root)
	found.addLines(id+": expected != container mounted again", fingerprint.Diff(want, written, shown))
	e.put(work)

	changes := e.checkChanges(work, parent, before, oracle, found)
	size := e.applyTwice(work, parent, id)
	got, err := drivers.DifferOf(e.d).DiffSize(ctx(), work, parent)
	e.must(err)
	if got != size {
		found.add("", "%s: DiffSize %d, in the stream %d", id, got, size)
	}
	made := take(e, e.get(id))
	e.put(id)
	for _, t := range []*fingerprint.Tree{written, made} {
		withoutTimes(t, changes)
	}
	found.addLines(id+": container != layer made of it", fingerprint.Diff(written, made, kept))
	e.must(e.d.Remove(ctx(), work))
	return id
}

// What the oracle has to have in common with a container, and a container with the layer made of it. Times are the
// steps' own; of directories whose entries changed they are those of the moment.
const (
	shown = fingerprint.Default &^ fingerprint.Mtime
	kept  = fingerprint.Default
)

func play(root string, layer int, steps []step) error {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	at := &place{root: root, layer: layer}
	return at.do(steps)
}

// take returns the fingerprint of a tree, times cut to seconds, as streams have them.
func take(e *env, root string) *fingerprint.Tree {
	e.Helper()
	t, err := fingerprint.Take(root, fingerprint.Options{
		Fields:    fingerprint.Default,
		SkipXattr: func(name string) bool { return name == "security.selinux" },
	})
	e.must(err)
	// The root itself is in no difference.
	delete(t.Entries, ".")
	for _, entry := range t.Entries {
		entry.Mtime.Nsec = 0
	}
	return t
}

// withoutTimes forgets the times of directories that did not change in anything else: by themselves they are no
// difference.
func withoutTimes(t *fingerprint.Tree, changes []tarlayer.Change) {
	changed := make(map[string]bool, len(changes))
	for _, c := range changes {
		changed[c.Path] = true
	}
	for p, entry := range t.Entries {
		if entry.Type == unix.S_IFDIR && !changed[p] {
			entry.Mtime = fingerprint.Time{}
		}
	}
}

func copyTree(e *env, to, from string) {
	e.Helper()
	a, err := layer.OpenPlain(from)
	e.must(err)
	defer a.Close()
	b, err := layer.OpenPlain(to)
	e.must(err)
	defer b.Close()
	e.must(copytree.Copy(ctx(), b.FD(), a.FD(), copytree.Options{}))
}

// checkChanges compares the driver's list of changes with that of the oracle, and with that of the naive differ.
func (e *env) checkChanges(id, parent, before, after string, found findings) []tarlayer.Change {
	e.Helper()
	a, err := layer.OpenPlain(before)
	e.must(err)
	defer a.Close()
	b, err := layer.OpenPlain(after)
	e.must(err)
	defer b.Close()
	want, err := drivers.Compare(ctx(), a, b)
	e.must(err)
	got, err := drivers.DifferOf(e.d).Changes(ctx(), id, parent)
	e.must(err)
	found.addLines(id+": changes in the trees != of the driver", differing(want, got))
	if _, own := e.d.(drivers.Differ); own {
		naive, err := drivers.NaiveDiffer(e.d).Changes(ctx(), id, parent)
		e.must(err)
		found.addLines(id+": changes by the naive differ != of the driver", differing(naive, got))
	}
	if !slices.IsSortedFunc(got, func(a, b tarlayer.Change) int { return tarlayer.ComparePaths(a.Path, b.Path) }) {
		found.add("", "%s: changes are not in order", id)
	}
	return got
}

// differing lists changes that are in one list alone, each line beginning with the path.
func differing(a, b []tarlayer.Change) (lines []string) {
	for _, c := range a {
		if !slices.Contains(b, c) {
			lines = append(lines, c.Path+": "+c.Kind.String()+" only in the first")
		}
	}
	for _, c := range b {
		if !slices.Contains(a, c) {
			lines = append(lines, c.Path+": "+c.Kind.String()+" only in the second")
		}
	}
	return lines
}

// applyTwice makes the layer id of what from has and parent has not, and checks that the stream is the same each time.
// It returns the number of bytes of content in it.
func (e *env) applyTwice(from, parent, id string) int64 {
	e.Helper()
	first, second := e.diff(from, parent), e.diff(from, parent)
	if !bytes.Equal(first, second) {
		e.Errorf("Diff of %s gives other bytes the second time", from)
	}
	e.must(e.d.Create(ctx(), id, parent, nil))
	res, err := drivers.DifferOf(e.d).ApplyDiff(ctx(), id, bytes.NewReader(first), nil)
	e.must(err)
	e.must(e.d.Sync(ctx(), id))
	return res.Bytes
}

// diff reads a whole stream.
func (e *env) diff(id, parent string) []byte {
	e.Helper()
	r, err := drivers.DifferOf(e.d).Diff(ctx(), id, parent, nil)
	e.must(err)
	b, err := io.ReadAll(r)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	e.must(err)
	return b
}

// stackDepth is how many layers deep stacks have: docker's limit is 125, what engines build is beyond that.
const stackDepth = 128

// stack makes a deep stack, and returns its top: each layer adds a file, changes one of all, and deletes that of the
// layer ten below.
func (e *env) stack() (top string) {
	e.Helper()
	parent := ""
	for i := range stackDepth {
		id := fmt.Sprintf("d%d", i)
		e.must(e.d.Create(ctx(), id, parent, nil))
		members := []member{{name: "dir/"}, {name: "all", content: id}, {name: "dir/" + id, content: id}}
		if i >= 10 {
			members = append(members, member{name: fmt.Sprintf("dir/d%d", i-10), gone: true})
		}
		_, err := drivers.DifferOf(e.d).ApplyDiff(ctx(), id, archive(e.T, members...), nil)
		e.must(err)
		parent = id
	}
	return parent
}

func (e *env) checkStack(root string, extra ...step) {
	e.Helper()
	names, err := os.ReadDir(filepath.Join(root, "dir"))
	e.must(err)
	if len(names) != 10 {
		e.Errorf("%d files in the directory, want 10", len(names))
	}
	at := &place{root: root}
	e.must(at.do(append(extra, holds("all", fmt.Sprintf("d%d", stackDepth-1)), absent("dir/d0"),
		holds(fmt.Sprintf("dir/d%d", stackDepth-10), fmt.Sprintf("d%d", stackDepth-10)))))
}

func caseDeepLayerRead(e *env) {
	top := e.stack()
	e.checkStack(e.get(top))
	e.put(top)
	e.reopen()
	e.checkStack(e.get(top))
	e.put(top)
}

func caseDeepLayerWrite(e *env) {
	e.writable("c", e.stack())
	e.change("c", appendTo("dir/d120", "+"), remove("dir/d121"), file("new", "new", 0o644))
	e.checkWritten("c")
}

// checkWritten checks what caseDeepLayerWrite wrote.
func (e *env) checkWritten(id string) {
	e.Helper()
	at := &place{root: e.get(id)}
	defer e.put(id)
	e.must(at.do([]step{holds("dir/d120", "d120+"), absent("dir/d121"), holds("new", "new")}))
	var st unix.Stat_t
	e.must(unix.Lstat(at.path("dir/d122"), &st))
}
