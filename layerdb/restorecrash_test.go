package layerdb

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"plyfs/internal/testenv"
)

// restoreScenario registers again the layer that lostAt leaves.
func restoreScenario(s *Store, say func(word, op string)) {
	base, _ := scenarioTars(nil)
	say("begin", "restore")
	if _, err := s.Register(context.Background(), bytes.NewReader(base), "", RegisterOptions{ExpectDiffID: diffID(base)}); err == nil {
		say("done", "restore")
	}
}

// lostAt makes a store with a layer whose stream is kept whole, as another version may have had reason to, and loses the tree or the
// file of the stream.
func lostAt(t *testing.T, o Options, tree bool) Layer {
	t.Helper()
	s := reopen(t, o)
	defer closeStore(t, s)
	base, _ := scenarioTars(t)
	l := register(t, s, "", base, RegisterOptions{Hold: &Holder{Kind: "test", Key: "image"}})
	r, unpin, err := s.pinLayer(l.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer unpin()
	l.Stream, l.StreamSum = StreamWhole, diffID(base)
	if err := os.WriteFile(s.streamPath(l), base, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.replaceRecord(r, l, func(*tx) error { return nil }); err != nil {
		t.Fatal(err)
	}
	mustMiss(t, s)
	lost := s.streamPath(l)
	if tree {
		lost = filepath.Join(o.ForDriver(s.drv.Name()).Home, l.CacheID)
	}
	if err := os.RemoveAll(lost); err != nil {
		t.Fatal(err)
	}
	mustMiss(t, s, l.ID)
	return l
}

// However the restoring of a layer ends, the layer is lost as before or whole, and its stream is kept in one form only.
func TestRestoreAtEveryStep(t *testing.T) {
	b := vfsBackend()
	b.restore = true
	base, _ := scenarioTars(t)
	for _, tree := range []bool{false, true} {
		for i, name := range restoreSteps(t, b, tree) {
			for _, mode := range []failure{failBefore, killBefore, killAfter} {
				t.Run(fmt.Sprintf("tree=%t_%d_%s_%s", tree, i+1, mode, name), func(t *testing.T) {
					root := filepath.Join(testenv.Scratch(t), "store")
					l := lostAt(t, b.at(root), tree)
					if mode != failBefore {
						runChild(t, b, root, mode, i+1)
					} else if s, err := openFaulty(root, b, &faults{mode: mode, at: i + 1}); err == nil {
						b.scenario(s, func(string, string) {})
						closeStore(t, s)
					}
					s := reopen(t, b.at(root))
					defer closeStore(t, s)
					rep, err := s.Check(t.Context(), CheckOptions{})
					if err != nil {
						t.Fatal(err)
					}
					for _, p := range rep.Problems {
						if p.Kind != ProblemMissing || p.Object != l.ID.String() && p.Object != layerKey(l.ID) {
							t.Errorf("problem: %+v", p)
						}
					}
					b.scenario(s, func(string, string) {})
					mustMiss(t, s)
					if !bytes.Equal(export(t, s, l.ID), base) {
						t.Error("it goes out changed")
					}
					emptyStore(t, s)
				})
			}
		}
	}
}

// restoreSteps returns the names of the steps that opening a store with a lost layer, and restoring that, takes.
func restoreSteps(t *testing.T, b backend, tree bool) []string {
	t.Helper()
	root := filepath.Join(testenv.Scratch(t), "store")
	lostAt(t, b.at(root), tree)
	f := &faults{}
	s, err := openFaulty(root, b, f)
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	done := false
	b.scenario(s, func(word, _ string) { done = word == "done" })
	if !done {
		t.Fatal("the layer is not restored")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.names)
}
