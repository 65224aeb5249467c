package all_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"plyfs/drivers"
	"plyfs/drivers/all"
	"plyfs/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m, testenv.Options{Binary: true})) }

func TestOrder(t *testing.T) {
	want := []string{"plyfs", "overlay2", "btrfs", "zfs", "devicemapper", "vfs"}
	if got := all.Registry().Names(); !slices.Equal(got, want) {
		t.Errorf("drivers %v, want %v", got, want)
	}
	seen := make(map[string]bool)
	for _, f := range all.Registry().Factories() {
		if seen[f.Name] || f.Summary == "" || f.Probe == nil {
			t.Errorf("driver %q is there twice, or has no summary or probe", f.Name)
		}
		seen[f.Name] = true
	}
}

func TestKnownByName(t *testing.T) {
	r := all.Registry()
	for _, name := range []string{"aufs", "overlay", "windowsfilter", "fuse-overlayfs", "native"} {
		_, err := r.Lookup(name)
		if !errors.Is(err, drivers.ErrNotSupported) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !strings.Contains(err.Error(), "use ") {
			t.Errorf("%s: the error says not what to use instead: %v", name, err)
		}
	}
	if _, err := r.Lookup("overlay3"); !errors.Is(err, drivers.ErrNotFound) || !strings.Contains(err.Error(), "overlay2") {
		t.Errorf("unknown driver: %v", err)
	}
}

// On any machine that can run the tests something is usable, each report has a reason, and nothing is left behind.
func TestProbe(t *testing.T) {
	if !testenv.InUserNamespace() {
		defer testenv.RunInUserNamespace(t, "^TestProbe$")
	}
	root := testenv.Scratch(t)
	r := all.Registry()
	reports := r.Probe(t.Context(), func(name string) drivers.Options {
		o := drivers.Options{Home: filepath.Join(root, "layers", name), Run: filepath.Join(root, "run", name)}
		if name == "plyfs" {
			o.Options = map[string]string{"mount_program": testenv.Binary(t)}
		}
		return o
	})
	for _, rep := range reports {
		t.Logf("%+v", rep)
		if rep.Driver == "" || rep.Why == "" {
			t.Errorf("report without name or reason: %+v", rep)
		}
		if !rep.Usable && rep.Todo == "" {
			t.Errorf("%s is not usable, and nothing is said of what to do", rep.Driver)
		}
	}
	f, err := r.Choose(reports)
	if err != nil || f.Name != "plyfs" {
		t.Errorf("chose %q: %v", f.Name, err)
	}
	if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
		t.Errorf("probing left %v: %v", left, err)
	}
}
