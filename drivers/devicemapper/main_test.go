package devicemapper

import (
	"errors"
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

// wants fails the test if err does not wrap want.
func wants(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func fillFile(content string) func(string) error {
	return func(root string) error { return os.WriteFile(filepath.Join(root, "f"), []byte(content), 0o644) }
}

// layers returns what List names, sorted.
func layers(t testing.TB, d *Driver) []string {
	t.Helper()
	var out []string
	must(t, d.List(t.Context(), func(i drivers.Info) error {
		out = append(out, i.ID+"<"+i.Parent+" "+strconv.FormatBool(i.Writable))
		return nil
	}))
	slices.Sort(out)
	return out
}

// noFiles is why the suite has no layer of which what is noted is damaged.
const noFiles = "what is noted of all layers is in one database"
