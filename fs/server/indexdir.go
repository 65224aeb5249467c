package server

import (
	"fmt"
	"os"
	"path/filepath"

	"plyfs/internal/sys"
)

// IndexDirEnv is the environment variable that names another place for indexes.
const IndexDirEnv = "PLYFS_INDEX_DIR"

// IndexDir is where indexes are kept unless a user says otherwise, by IndexDirEnv too: /var/cache/plyfs/index for the root of
// the initial user namespace, plyfs/index in the user's cache directory (XDG_CACHE_HOME or ~/.cache) for everyone else. It
// is an error that a user has none.
func IndexDir() (string, error) {
	if dir := os.Getenv(IndexDirEnv); dir != "" {
		return dir, nil
	}
	if os.Geteuid() == 0 {
		if same, err := sys.IdentityMapped(); err == nil && same {
			return "/var/cache/plyfs/index", nil
		}
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for an index: %w (choose one with index=DIR)", err)
	}
	return filepath.Join(dir, "plyfs", "index"), nil
}
