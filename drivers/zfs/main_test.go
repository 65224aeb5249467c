package zfs

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"plyfs/drivers"
	"plyfs/drivers/drivertest"
	"plyfs/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(drivertest.Main(m, testenv.Options{})) }

var must = testenv.Must

func fillFile(content string) func(string) error {
	return func(root string) error { return os.WriteFile(filepath.Join(root, "f"), []byte(content), 0o644) }
}

// layers returns what List names, sorted.
func layers(t *testing.T, d *Driver) []string {
	t.Helper()
	var out []string
	must(t, d.List(t.Context(), func(i drivers.Info) error {
		out = append(out, i.ID+"<"+i.Parent+" "+strconv.FormatBool(i.Writable))
		return nil
	}))
	slices.Sort(out)
	return out
}
