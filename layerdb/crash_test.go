package layerdb

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"plyfs/drivers"
	"plyfs/internal/testenv"
)

// The environment of a child that is to be killed.
const (
	envChildRoot = "PLYFS_LAYERDB_CHILD"
	envChildMode = "PLYFS_LAYERDB_MODE"
	envChildStep = "PLYFS_LAYERDB_STEP"
	// envChildDriver and envChildProgram are the backend.
	envChildDriver  = "PLYFS_LAYERDB_DRIVER"
	envChildProgram = "PLYFS_LAYERDB_PROGRAM"
	envChildImage   = "PLYFS_LAYERDB_IMAGE"
	// envChildSnapshots says that the scenario is that of snapshots.
	envChildSnapshots = "PLYFS_LAYERDB_SNAPSHOTS"
	// envChildRestore says that it is that of restoring a layer.
	envChildRestore = "PLYFS_LAYERDB_RESTORE"
)

// progress is what is known of the operations of a scenario: those that were begun, and those that succeeded.
type progress struct{ begun, done map[string]bool }

func newProgress() *progress { return &progress{make(map[string]bool), make(map[string]bool)} }

// scenario runs one operation of each kind, and goes on after those that fail.
func scenario(s *Store, baseTar, topTar []byte, say func(word, op string)) {
	ctx := context.Background()
	var base, top, committed Layer
	steps := []struct {
		op  string
		run func() (err error)
	}{
		{"base", func() (err error) {
			base, err = s.Register(ctx, bytes.NewReader(baseTar), "", RegisterOptions{Hold: &Holder{Kind: "test", Key: "image"}})
			return err
		}},
		{"top", func() (err error) {
			top, err = s.Register(ctx, bytes.NewReader(topTar), base.ID, RegisterOptions{
				Hold: &Holder{Kind: "test", Key: "image"}, ExpectDiffID: diffID(topTar),
			})
			return err
		}},
		{"create", func() error {
			_, err := s.CreateContainer(ctx, "c", top.ID, ContainerOptions{})
			return err
		}},
		{"write", func() error {
			root, err := s.Mount(ctx, "c", MountOptions{})
			if err != nil {
				return err
			}
			return errors.Join(os.WriteFile(filepath.Join(root, "written"), []byte("hello"), 0o600), s.Unmount(ctx, "c"))
		}},
		{"commit", func() (err error) {
			committed, err = s.Commit(ctx, "c", RegisterOptions{Hold: &Holder{Kind: "test", Key: "new"}})
			return err
		}},
		{"verify", func() error { return s.Verify(ctx, committed.ID) }},
		{"tag", func() error {
			return s.Change(ctx, Update{Hold: []Holder{holder("tag", committed.ID)}, Release: []Ref{{"test", "new"}}})
		}},
		{"remove", func() error { return s.RemoveContainer(ctx, "c") }},
		{"release", func() error { return s.Release(ctx, Ref{"test", "image"}) }},
		{"untag", func() error { return s.Release(ctx, Ref{"test", "tag"}) }},
	}
	for _, step := range steps {
		say("begin", step.op)
		if step.run() == nil {
			say("done", step.op)
		}
	}
}

func scenarioTars(t testing.TB) (base, top []byte) {
	return stream(t, file{name: "a", content: "base"}, file{name: "d/", kind: '5'}, file{name: "d/f", content: "x"}),
		stream(t, file{name: "d/.wh.f"}, file{name: "b", content: "top"})
}

// mustBeConsistent opens a store after something went wrong, and compares it with what succeeded.
func mustBeConsistent(t *testing.T, o Options, p *progress) {
	t.Helper()
	ctx := context.Background()
	s := reopen(t, o)
	defer closeStore(t, s)
	mustHaveNoStrayMounts(t, s)
	rep, err := s.Check(ctx, CheckOptions{Mode: CheckContent})
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range rep.Problems {
		t.Errorf("problem: %+v", problem)
	}
	base, top := scenarioTars(t)
	baseID := ChainOf(diffID(base))
	keeps := func(op, end string) bool { return p.done[op] && !p.begun[end] }
	if keeps("base", "release") && !bytes.Equal(export(t, s, baseID), base) {
		t.Error("the base is not what it was")
	}
	if keeps("top", "release") && !bytes.Equal(export(t, s, ChainOf(diffID(base), diffID(top))), top) {
		t.Error("the top is not what it was")
	}
	c, err := s.Container(ctx, "c")
	if keeps("create", "remove") && err != nil {
		t.Error("the container is lost:", err)
	}
	if p.done["remove"] && !errors.Is(err, drivers.ErrNotFound) {
		t.Error("the container is back:", err)
	}
	if err == nil && p.done["write"] {
		mustHoldFile(t, s, c.Name, "written", "hello")
	}
	for op, key := range map[string]string{"base": "image", "commit": "new", "tag": "tag"} {
		end := map[string]string{"base": "release", "commit": "tag", "tag": "untag"}[op]
		_, err := s.Holder(ctx, Ref{"test", key})
		if keeps(op, end) && err != nil {
			t.Errorf("holder %s is lost: %v", key, err)
		}
		if p.done[end] && !errors.Is(err, drivers.ErrNotFound) {
			t.Errorf("holder %s is back: %v", key, err)
		}
	}
	emptyStore(t, s)
}

// reopen opens the store of a process that was killed. What that was about to start may have the lock for a moment.
func reopen(t testing.TB, o Options) *Store {
	t.Helper()
	o.Wait = defaultWait
	s, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// mustHaveNoStrayMounts holds that the driver has no references but those that containers count.
func mustHaveNoStrayMounts(t testing.TB, s *Store) {
	t.Helper()
	r, ok := s.drv.(drivers.Referrer)
	if !ok {
		t.Fatalf("driver %s does not tell its references", s.drv.Name())
	}
	has := r.References()
	containers, err := s.Containers(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers {
		if has[c.ID] > c.Mounts {
			t.Errorf("container %s is mounted %d times, %d are counted", c.Name, has[c.ID], c.Mounts)
		}
		delete(has, c.ID)
	}
	if len(has) > 0 {
		t.Errorf("mounted, but by nobody: %v", has)
	}
}

func mustHoldFile(t testing.TB, s *Store, container, name, content string) {
	t.Helper()
	ctx := context.Background()
	root, err := s.Mount(ctx, container, MountOptions{})
	if err != nil {
		t.Error(err)
		return
	}
	if b, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(b) != content {
		t.Errorf("%s in %s: %q, %v; want %q", name, container, b, err, content)
	}
	if err := s.Unmount(ctx, container); err != nil {
		t.Error(err)
	}
}

// emptyStore removes everything that can be removed by name, and holds that nothing is left then.
func emptyStore(t testing.TB, s *Store) {
	t.Helper()
	ctx := context.Background()
	containers, err := s.Containers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers {
		for range c.Mounts {
			if err := s.Unmount(ctx, c.Name); err != nil {
				t.Error(err)
			}
		}
		if err := s.RemoveContainer(ctx, c.Name); err != nil {
			t.Error(err)
		}
	}
	holders, err := s.Holders(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range holders {
		if err := s.Release(ctx, h.Ref()); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.GC(ctx); err != nil {
		t.Error(err)
	}
	if _, err := s.Check(ctx, CheckOptions{Repair: Repair}); err != nil {
		t.Error(err)
	}
	mustBeEmpty(t, s)
}

// steps returns the names of all steps that a scenario takes when nothing goes wrong.
func steps(t *testing.T, b backend) []string {
	t.Helper()
	f := &faults{}
	s, err := openFaulty(filepath.Join(testenv.Scratch(t), "store"), b, f)
	if err != nil {
		t.Fatal(err)
	}
	begun, done := 0, 0
	b.scenario(s, func(word, _ string) {
		if word == "done" {
			done++
		} else {
			begun++
		}
	})
	closeStore(t, s)
	if done != begun {
		t.Fatalf("%d operations of %d succeed without a failure", done, begun)
	}
	return f.names
}

// Whatever step fails, the store is consistent afterwards, and nothing that succeeded is lost.
func TestFailAtEveryStep(t *testing.T) {
	base, top := scenarioTars(t)
	for i, name := range steps(t, vfsBackend()) {
		for _, mode := range []failure{failBefore, failAfter} {
			if mode == failAfter && name != "commit" {
				continue
			}
			t.Run(fmt.Sprintf("%d_%s_%s", i+1, mode, name), func(t *testing.T) {
				root := filepath.Join(testenv.Scratch(t), "store")
				p := newProgress()
				s, err := openFaulty(root, vfsBackend(), &faults{mode: mode, at: i + 1})
				if err == nil {
					scenario(s, base, top, p.say)
					closeStore(t, s)
				}
				mustBeConsistent(t, optionsAt(root), p)
			})
		}
	}
}

func (p *progress) say(word, op string) {
	if word == "begin" {
		p.begun[op] = true
	} else {
		p.done[op] = true
	}
}

// The same for a process that is killed, before and after the step.
func TestKillAtEveryStep(t *testing.T) {
	for i, name := range steps(t, vfsBackend()) {
		for _, mode := range []failure{killBefore, killAfter} {
			t.Run(fmt.Sprintf("%d_%s_%s", i+1, mode, name), func(t *testing.T) {
				root := filepath.Join(testenv.Scratch(t), "store")
				mustBeConsistent(t, optionsAt(root), runChild(t, vfsBackend(), root, mode, i+1))
			})
		}
	}
}

// The same with drivers whose mounts outlive the process, for the first and the last step of each kind.
func TestKillWithMounts(t *testing.T) {
	for _, b := range stackingBackends(t) {
		names := steps(t, b)
		for i, name := range names {
			if slices.Index(names, name) != i && slices.Contains(names[i+1:], name) {
				continue
			}
			t.Run(fmt.Sprintf("%s_%d_%s", b.Name, i+1, name), func(t *testing.T) {
				root := filepath.Join(testenv.Scratch(t), "store")
				mustBeConsistent(t, b.at(root), runChild(t, b, root, killAfter, i+1))
			})
		}
	}
}

// The layers of an image that are unpacked at once: a kill leaves some of the lower ones, whole, or all.
func TestKillStacked(t *testing.T) {
	b := stackingBackends(t)[0]
	b.image = true
	tars := dependentTars(t, imageLayers)
	names := steps(t, b)
	for i, name := range names {
		// Those of four layers are alike: one of each kind for each of the first three.
		if n := countOf(names[:i], name); n > 2 {
			continue
		}
		t.Run(fmt.Sprintf("%d_%s", i+1, name), func(t *testing.T) {
			root := filepath.Join(testenv.Scratch(t), "store")
			runChild(t, b, root, killAfter, i+1)
			s := reopen(t, b.at(root))
			layers, err := s.Layers(context.Background())
			if err != nil {
				t.Error(err)
			}
			for k, l := range layers {
				if !bytes.Equal(export(t, s, l.ID), tars[k]) {
					t.Errorf("layer %d of %d goes out changed", k, len(layers))
				}
			}
			closeStore(t, s)
			mustBeConsistent(t, b.at(root), newProgress())
		})
	}
}

func countOf(names []string, name string) (n int) {
	for _, other := range names {
		if other == name {
			n++
		}
	}
	return n
}

// imageLayers is how many layers imageScenario makes.
const imageLayers = 4

// imageScenario registers an image whose layers are unpacked at once.
func imageScenario(s *Store, say func(word, op string)) {
	say("begin", "image")
	_, err := s.RegisterAll(context.Background(), sourcesOf(dependentTars(nil, imageLayers)), RegisterAllOptions{
		Parallel: imageLayers, Hold: &Holder{Kind: "image", Key: "it"},
	})
	if err == nil {
		say("done", "image")
	}
}

// runChild runs the scenario in a process that is killed at the step, and returns how far it was.
func runChild(t *testing.T, b backend, root string, mode failure, step int) *progress {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), envChildRoot+"="+root, envChildMode+"="+string(mode), envChildStep+"="+strconv.Itoa(step))
	cmd.Env = append(cmd.Env, b.environment()...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Fatalf("the child ended by itself: %v\n%s", err, out)
	}
	p := newProgress()
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
		word, op, _ := strings.Cut(sc.Text(), " ")
		p.say(word, op)
	}
	return p
}

// child is the process that is killed; it returns false if this is none.
func child() bool {
	root := os.Getenv(envChildRoot)
	if root == "" {
		return false
	}
	step, err := strconv.Atoi(os.Getenv(envChildStep))
	if err != nil {
		panic(err)
	}
	b, err := backendOfChild()
	if err != nil {
		panic(err)
	}
	s, err := openFaulty(root, b, &faults{mode: failure(os.Getenv(envChildMode)), at: step})
	if err != nil {
		panic(err)
	}
	b.scenario(s, func(word, op string) { fmt.Println(word, op) })
	return true
}
