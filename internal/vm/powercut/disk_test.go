package powercut

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"plyfs/internal/testenv"
)

// diskSize is the least that the file systems under test take.
const diskSize = 320 << 20

// fileSystem is one that the upper lies on.
type fileSystem struct {
	name string
	mkfs []string
	// again are the options to mount a second file system of the same identity beside the first.
	again string
}

func fileSystems() []fileSystem {
	return []fileSystem{
		{"ext4", []string{"mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"}, "rw"},
		{"xfs", []string{"mkfs.xfs", "-q", "-f", "-K"}, "nouuid"},
		{"btrfs", []string{"mkfs.btrfs", "-q", "-f", "-K"}, "rw"},
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

func mountAt(t *testing.T, fstype, options, source string) string {
	t.Helper()
	dir := filepath.Join(testenv.Scratch(t), "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-t", fstype, "-o", options, source, dir)
	t.Cleanup(func() { testenv.Unmount(t, dir) })
	return dir
}
