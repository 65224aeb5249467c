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

// TestEngineSystems: a report names the program of each part of a system.
func TestEngineSystems(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"podman", "containerd", FuseOverlayfs, Plyfs} {
		script := "#!/bin/sh\necho " + name + " 7.1\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	want := map[string]string{
		EngineKernel: "podman 7.1 on Linux ", EngineFuseOverlayfs: "podman 7.1 with fuse-overlayfs ", EnginePlyfs: "podman 7.1 with plyfs 7.1",
		SnapshotterOverlay: "containerd 7.1 on Linux ", SnapshotterPlyfs: "containerd 7.1 with plyfs 7.1",
	}
	got := engineSystems(t.Context(), filepath.Join(dir, Plyfs), AllEngines())
	for _, s := range got {
		if !strings.HasPrefix(s.Version, want[s.Name]) || want[s.Name] == "" {
			t.Errorf("%s: %q", s.Name, s.Version)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d systems", len(got))
	}
	t.Setenv("PATH", t.TempDir())
	for _, s := range engineSystems(t.Context(), filepath.Join(dir, Plyfs), AllEngines()) {
		if !strings.Contains(s.Version, "is not installed") {
			t.Errorf("%s without the engine: %q", s.Name, s.Version)
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
