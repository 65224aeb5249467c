package packaging_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"plyfs/internal/cmdtable"
	"plyfs/internal/testenv"
)

func TestMain(m *testing.M) {
	os.Exit(testenv.Main(m, testenv.Options{Binary: true, Daemons: true}))
}

// longest bounds each program that a test runs.
const longest = 10 * time.Minute

// command prepares a program without the variables of a make that runs this test.
func command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), longest)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, name, args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "MAKE") && !strings.HasPrefix(v, "MFLAGS") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	return cmd
}

// run runs a program that must succeed, and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := command(t, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// make runs a target of the project's Makefile.
func makeTarget(t *testing.T, args ...string) {
	t.Helper()
	run(t, "make", append([]string{"-C", "../..", "--no-print-directory"}, args...)...)
}

// prebuilt are the variables by which make installs the programs under test, without touching the checkout.
func prebuilt(t *testing.T, dist string) []string {
	t.Helper()
	return []string{"PREBUILT=1", "BIN=" + filepath.Dir(testenv.Binary(t)), "DIST=" + dist}
}

// commands is the programs' own table, without what is for programs.
func commands(t *testing.T) []cmdtable.Command {
	t.Helper()
	var table []cmdtable.Command
	if err := json.Unmarshal([]byte(run(t, testenv.Binary(t), "__commands")), &table); err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(table, func(c cmdtable.Command) bool { return c.Hidden })
}

// tree lists what is below dir, but for /proc: directories with a slash at the end, links with their target.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name := strings.TrimPrefix(path, dir)
		switch {
		case name == "/proc":
			return filepath.SkipDir // it changes while it is read
		case e.IsDir():
			name += "/"
		case e.Type()&os.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			name += " -> " + target
		}
		out = append(out, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
