//go:build !vm

package powercut

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"plyfs/internal/testenv"
)

// indexSteps is how many indexes indexLoad builds, each of another stack of two lowers.
const indexSteps = 3

// stackDirs is how many directories both lowers have.
const stackDirs = 20

// stacksEnv is where the stacks are.
const stacksEnv = "PLYFS_POWERCUT_STACKS"

func lowersOf(stacks string, i int) string {
	return fmt.Sprintf("lowerdir=%[1]s/top%[2]d:%[1]s/bottom%[2]d", stacks, i)
}

// makeStacks makes the lowers: the top one hides a name of the bottom one.
func makeStacks(t *testing.T, stacks string) {
	t.Helper()
	for i := range indexSteps {
		for _, layer := range []string{"top", "bottom"} {
			for k := range stackDirs {
				d := filepath.Join(stacks, fmt.Sprint(layer, i), fmt.Sprintf("dir%d", k))
				if err := errors.Join(os.MkdirAll(d, 0o755), os.WriteFile(d+"/both", []byte(layer), 0o644),
					os.WriteFile(d+"/"+layer, []byte(layer), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func indexLoad() load {
	return load{"index", indexSteps, func(dir string) (func(i int) error, error) {
		return func(i int) error {
			cmd := exec.Command(os.Getenv("PLYFS_TEST_BINARY"), "index", "build", "-q", "-o", lowersOf(os.Getenv(stacksEnv), i))
			cmd.Env = append(os.Environ(), "PLYFS_INDEX_DIR="+dir)
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("plyfs index build: %w: %s", err, out)
			}
			return nil
		}, nil
	}}
}

// checkIndexes mounts every stack with the indexes of a cut, whole or half-written: nothing of an index may show but what the
// lowers hold. Then indexes are built where there is none, and all must verify.
func checkIndexes(t *testing.T, stacks, dir string) {
	t.Helper()
	t.Setenv("PLYFS_INDEX_DIR", dir)
	for i := range indexSteps {
		lowers := lowersOf(stacks, i)
		merged := testenv.Scratch(t)
		if code, out := plyfs(t, "mount", "-o", "ro,"+lowers, merged); code != 0 {
			t.Fatalf("plyfs mount: exit code %d: %s", code, out)
		}
		for k := range stackDirs {
			d := filepath.Join(merged, fmt.Sprintf("dir%d", k))
			entries, err := os.ReadDir(d)
			b, err2 := os.ReadFile(d + "/both")
			if err != nil || err2 != nil || len(entries) != 3 || string(b) != "top" {
				t.Errorf("stack %d, %s: %v, %v; content %q, %v", i, d, entries, err, b, err2)
			}
		}
		if code, out := plyfs(t, "umount", merged); code != 0 {
			t.Errorf("plyfs umount: exit code %d: %s", code, out)
		}
		for _, verb := range []string{"build", "verify"} {
			if code, out := plyfs(t, "index", verb, "-q", "-o", lowers); code != 0 {
				t.Errorf("plyfs index %s of stack %d: exit code %d: %s", verb, i, code, out)
			}
		}
	}
}
