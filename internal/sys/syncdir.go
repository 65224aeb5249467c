package sys

import (
	"errors"
	"os"
)

// SyncDir makes the names in the directory path durable: what was made, renamed or removed in it stays so after a power cut.
// The error names the directory.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
