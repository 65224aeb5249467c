package powercut

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"plyfs/internal/testenv"
)

// loadEnv is the environment of a load: its name, a colon, and the directory that it works in.
const loadEnv = "PLYFS_POWERCUT_LOAD"

func TestMain(m *testing.M) {
	if name, dir, ok := strings.Cut(os.Getenv(loadEnv), ":"); ok {
		if err := runLoad(name, dir, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "load:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(testenv.Main(m, testenv.Options{Binary: true}))
}
