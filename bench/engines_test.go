package bench

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func TestSelectEngines(t *testing.T) {
	got, err := Select(AllEngines(), []string{"podman-run-*", podmanRunRoot})
	if err != nil || len(got) != 2 || got[0].Name != podmanRunRoot || got[1].Name != podmanRunUser {
		t.Errorf("selected %v, %v", got, err)
	}
	for _, bad := range [][]string{{"none"}, {"["}, {podmanRunRoot, "none"}} {
		if _, err := Select(AllEngines(), bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// TestEngineRows: each demand is about a workload and systems that there are.
func TestEngineRows(t *testing.T) {
	for _, row := range engineRows() {
		systems := ""
		for _, w := range AllEngines() {
			if w.Name == row.Series {
				systems = strings.Join(w.Systems, " ")
			}
		}
		if !strings.Contains(systems, row.System) || !strings.Contains(systems, row.Base) {
			t.Errorf("%s is measured on %q, and a demand compares %s with %s", row.Series, systems, row.System, row.Base)
		}
	}
}

func TestEngineImage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := writeEngineImage(file); err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != engineLayers {
		t.Errorf("%d layers, %v", len(layers), err)
	}
	dir := t.TempDir()
	if err := writeBuild(dir); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "Containerfile")); err != nil || !strings.HasPrefix(string(b), "FROM "+engineImageName+"\n") {
		t.Errorf("%q, %v", b, err)
	}
}
