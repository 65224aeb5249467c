package server

import (
	"os"
	"testing"

	"plyfs/internal/sys"
)

func TestIndexDir(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", "/x")
	t.Setenv(IndexDirEnv, "/chosen")
	if dir, err := IndexDir(); err != nil || dir != "/chosen" {
		t.Errorf("%s, %v; want what %s says", dir, err, IndexDirEnv)
	}
	t.Setenv(IndexDirEnv, "")
	dir, err := IndexDir()
	want := "/x/plyfs/index"
	if same, err := sys.IdentityMapped(); os.Geteuid() == 0 && same && err == nil {
		want = "/var/cache/plyfs/index"
	}
	if err != nil || dir != want {
		t.Errorf("%s, %v; want %s", dir, err, want)
	}
}
