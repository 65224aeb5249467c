package server

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
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
	if os.Geteuid() == 0 && initialNamespace() {
		return "/var/cache/plyfs/index", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for an index: %w (choose one with index=DIR)", err)
	}
	return filepath.Join(dir, "plyfs", "index"), nil
}

// initialNamespace says that the process is in the user namespace where every id is itself.
func initialNamespace() bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	f := bytes.Fields(text)
	return err == nil && len(f) == 3 && string(f[0]) == "0" && string(f[1]) == "0" && string(f[2]) == "4294967295"
}
