package layerdb

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"plyfs/drivers"
	"plyfs/internal/testenv"
)

// snapshotScenario is the life of snapshots: an image of two layers, a view of it, a container, and the end of all.
func snapshotScenario(s *Store, say func(word, op string)) {
	ctx := context.Background()
	create := func(name, parent string, o SnapshotOptions) func() error {
		return func() error {
			_, err := s.CreateSnapshot(ctx, name, parent, o)
			return err
		}
	}
	commit := func(name, active string) func() error {
		return func() error {
			_, err := s.CommitSnapshot(ctx, name, active, SnapshotCommit{Labels: map[string]string{"of": active}})
			return err
		}
	}
	mount := func(name string) func() error {
		return func() error { _, err := s.MountSnapshot(ctx, name); return err }
	}
	remove := func(name string) func() error { return func() error { return s.RemoveSnapshot(ctx, name) } }
	for _, step := range []struct {
		op  string
		run func() error
	}{
		{"extract-1", create("extract-1", "", SnapshotOptions{Content: SnapshotUnpacked})},
		{"base", commit("base", "extract-1")},
		{"work", create("work", "base", SnapshotOptions{Labels: map[string]string{"a": "b"}})},
		{"mount-work", mount("work")},
		{"top", commit("top", "work")},
		{"look", create("look", "top", SnapshotOptions{Kind: SnapshotView})},
		{"nothing", create("nothing", "", SnapshotOptions{Kind: SnapshotView})},
		{"box", create("box", "top", SnapshotOptions{})},
		{"mount-box", mount("box")},
		{"mount-box-again", mount("box")},
		{"relabel", func() error {
			_, err := s.RelabelSnapshot(ctx, "box", func(map[string]string) (map[string]string, error) {
				return map[string]string{"new": "label"}, nil
			})
			return err
		}},
		{"-box", remove("box")},
		{"-look", remove("look")},
		{"-nothing", remove("nothing")},
		{"-top", remove("top")},
		{"-base", remove("base")},
		{"clean", func() error { _, err := s.CleanSnapshots(ctx); return err }},
	} {
		say("begin", step.op)
		if step.run() == nil {
			say("done", step.op)
		}
	}
}

// mustHaveSnapshots opens a store after something went wrong, and holds that each snapshot is as before or behind what went wrong,
// that those whose making or removal succeeded are there or gone, and that the driver has their layers and no others.
func mustHaveSnapshots(t *testing.T, o Options, p *progress) {
	t.Helper()
	ctx := context.Background()
	s := reopen(t, o)
	defer closeStore(t, s)
	rep, err := s.Check(ctx, CheckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range rep.Problems {
		t.Errorf("problem: %+v", problem)
	}
	if notes, err := os.ReadDir(s.path(notesDir)); err != nil || len(notes) > 0 {
		t.Errorf("notes stay: %v %v", notes, err)
	}
	all, err := s.Snapshots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var names, layers []string
	for _, n := range all {
		names = append(names, n.Name)
		if n.hasLayer() {
			layers = append(layers, n.ID)
		}
	}
	var has []string
	if err := s.drv.List(ctx, func(i drivers.Info) error { has = append(has, i.ID); return nil }); err != nil {
		t.Fatal(err)
	}
	active := make(map[string]bool)
	for _, n := range all {
		active[n.ID] = n.Kind == SnapshotActive && !n.Unpacked
	}
	for id, count := range s.drv.(drivers.Referrer).References() {
		if !active[id] || count > 1 {
			t.Errorf("layer %s has %d references; is it of an active snapshot: %t", id, count, active[id])
		}
	}
	slices.Sort(layers)
	slices.Sort(has)
	if !slices.Equal(layers, has) {
		t.Errorf("the driver has %v, the snapshots %v", has, layers)
	}
	for made, ends := range map[string][]string{
		"extract-1": {"base"}, "base": {"-base"}, "work": {"top"}, "top": {"-top"}, "look": {"-look"}, "nothing": {"-nothing"}, "box": {"-box"},
	} {
		ended := slices.ContainsFunc(ends, func(op string) bool { return p.begun[op] })
		if p.done[made] && !ended && !slices.Contains(names, made) {
			t.Errorf("snapshot %s is lost: %v", made, names)
		}
		if slices.ContainsFunc(ends, func(op string) bool { return p.done[op] }) && slices.Contains(names, made) {
			t.Errorf("snapshot %s is back: %v", made, names)
		}
	}
	removeSnapshots(t, s, all)
}

// removeSnapshots removes all, children first, and holds that the store is empty then.
func removeSnapshots(t *testing.T, s *Store, all []Snapshot) {
	t.Helper()
	ctx := context.Background()
	for len(all) > 0 {
		before := len(all)
		all = slices.DeleteFunc(all, func(n Snapshot) bool {
			err := s.RemoveSnapshot(ctx, n.Name)
			if err != nil && !errors.Is(err, drivers.ErrInUse) {
				t.Error(err)
			}
			return err == nil
		})
		if len(all) == before {
			t.Fatalf("snapshots cannot be removed: %+v", all)
		}
	}
	if _, err := s.Check(ctx, CheckOptions{Repair: Repair}); err != nil {
		t.Error(err)
	}
	mustBeEmpty(t, s)
}

func snapshotBackends(t testing.TB) []backend {
	all := append([]backend{vfsBackend()}, stackingBackends(t)...)
	for i := range all {
		all[i].snapshots = true
	}
	return all
}

// Whatever step fails, no snapshot is lost and nothing of one leaks.
func TestSnapshotFailAtEveryStep(t *testing.T) {
	b := snapshotBackends(t)[1]
	for i, name := range steps(t, b) {
		for _, mode := range []failure{failBefore, failAfter} {
			if mode == failAfter && name != "commit" {
				continue
			}
			t.Run(fmt.Sprintf("%d_%s_%s", i+1, mode, name), func(t *testing.T) {
				root := filepath.Join(testenv.Scratch(t), "store")
				p := newProgress()
				s, err := openFaulty(root, b, &faults{mode: mode, at: i + 1})
				if err == nil {
					snapshotScenario(s, p.say)
					closeStore(t, s)
				}
				mustHaveSnapshots(t, b.at(root), p)
			})
		}
	}
}

// The same for a process that is killed, before and after the step, and with vfs behind the first and the last step of each kind.
func TestSnapshotKillAtEveryStep(t *testing.T) {
	for _, b := range snapshotBackends(t) {
		names := steps(t, b)
		for i, name := range names {
			for _, mode := range []failure{killBefore, killAfter} {
				inner := slices.Index(names, name) != i && slices.Contains(names[i+1:], name)
				if b.Name == "vfs" && (inner || mode == killBefore) {
					continue
				}
				t.Run(fmt.Sprintf("%s_%d_%s_%s", b.Name, i+1, mode, name), func(t *testing.T) {
					root := filepath.Join(testenv.Scratch(t), "store")
					mustHaveSnapshots(t, b.at(root), runChild(t, b, root, mode, i+1))
				})
			}
		}
	}
}
