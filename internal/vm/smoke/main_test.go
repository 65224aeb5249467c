//go:build vm

package smoke

import (
	"os"
	"path/filepath"
	"testing"

	"plyfs/internal/testenv"
	"plyfs/internal/vm/vmtest"
)

func TestMain(m *testing.M) {
	os.Exit(testenv.Main(m, testenv.Options{Binary: true}))
}

// mounted mounts a device, or a dataset, for the test's duration and returns where.
func mounted(t *testing.T, fstype, source, options string) string {
	t.Helper()
	dir := filepath.Join(testenv.Scratch(t), "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	vmtest.Run(t, "mount", "-t", fstype, "-o", options, source, dir)
	t.Cleanup(func() { testenv.Unmount(t, dir) })
	return dir
}

func write(t *testing.T, text string, elem ...string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(elem...), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func wantContent(t *testing.T, want string, elem ...string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(elem...))
	if err != nil || string(got) != want {
		t.Errorf("%s: %q, %v; want %q", filepath.Join(elem...), got, err, want)
	}
}

func mkdir(t *testing.T, elem ...string) string {
	t.Helper()
	dir := filepath.Join(elem...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
