package layerdb

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// Names in the store's directory; see the package doc.
const (
	lockFile    = "lock"
	driverFile  = "driver"
	dbDir       = "db"
	layersDir   = "layers"
	streamsDir  = "tarsplit"
	recordsDir  = "records"
	blobsDir    = "blobs"
	runDir      = "run"
	notesDir    = "unfinished"
	tempDir     = "tmp"
	ballastFile = "ballast"
	splitSuffix = ".zst"
	wholeSuffix = ".whole"
	copySuffix  = ".json"
	holderCopy  = "holder-"
)

// DefaultRoot is where a store is unless the user says otherwise: /var/lib/plyfs for root of the machine, for others
// plyfs in $XDG_DATA_HOME, which is ~/.local/share by default; for root of a user namespace it is that of the user who
// made it. It is "" for a user without a home.
func DefaultRoot() string {
	if os.Geteuid() == 0 && !drivers.UserNamespace().Nested {
		return "/var/lib/plyfs"
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "plyfs")
	}
	home, err := os.UserHomeDir()
	if err != nil || !filepath.IsAbs(home) {
		return ""
	}
	return filepath.Join(home, ".local", "share", "plyfs")
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

// streamPath is the file that keeps a layer's stream.
func (s *Store) streamPath(l Layer) string {
	if l.Stream == StreamWhole {
		return s.path(streamsDir, l.CacheID+wholeSuffix)
	}
	return s.path(streamsDir, l.CacheID+splitSuffix)
}

// otherStreamPath is the file that would keep a layer's stream in the other form.
func (s *Store) otherStreamPath(l Layer) string {
	if l.Stream == StreamWhole {
		l.Stream = StreamSplit
	} else {
		l.Stream = StreamWhole
	}
	return s.streamPath(l)
}

// copyName is the name of the file in the directory records that has a copy of the record.
func copyName(r Record) string {
	switch {
	case r.Layer != nil:
		return "layer-" + r.Layer.CacheID + copySuffix
	case r.Container != nil:
		return "container-" + r.Container.ID + copySuffix
	case r.Snapshot != nil:
		return snapshotCopyName(r.Snapshot.ID)
	default:
		// A key may hold what a name of a file may not.
		sum := sha256.Sum256([]byte(r.Holder.Kind + "\x00" + r.Holder.Key))
		return holderCopy + hex.EncodeToString(sum[:]) + copySuffix
	}
}

func snapshotCopyName(id string) string { return "snapshot-" + id + copySuffix }

// writeCopy makes the copy of the record durable.
func (s *Store) writeCopy(r Record) error {
	b, err := copyOf(r)
	if err == nil {
		err = s.writeFile(b, recordsDir, copyName(r))
	}
	if err != nil {
		s.copiesMatch.Store(false)
	}
	return err
}

// copyOf is what the copy of the record holds.
func copyOf(r Record) ([]byte, error) {
	if r.Container != nil {
		// Mounts come and go, and none of them outlives the loss of a database by much.
		c := *r.Container
		c.Mounts, c.Boot = 0, ""
		r.Container = &c
	}
	b, err := EncodeRecord(r)
	return append(b, '\n'), err
}

func (s *Store) removeCopy(r Record) error {
	err := removeFile(s.path(recordsDir, copyName(r)))
	if err != nil {
		s.copiesMatch.Store(false)
	}
	return err
}

// writeFile makes a file with the content durable, or leaves what was there.
func (s *Store) writeFile(content []byte, elem ...string) (err error) {
	path := s.path(elem...)
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	f, err := os.CreateTemp(s.path(tempDir), "file-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name()) // what stays is removed when the store is opened
		}
	}()
	if _, err := f.Write(content); err != nil {
		return err
	}
	return publishFile(f, path)
}

// publishFile syncs and closes a file and gives it its name, durably.
func publishFile(f *os.File, path string) error {
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return sys.SyncDir(filepath.Dir(path))
}

func removeFile(path string) error {
	if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// emptyDir removes everything in a directory of the store's own files.
func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// ForDriver returns the options with which the named driver is opened for this store, or probed.
func (o Options) ForDriver(name string) drivers.Options {
	return drivers.Options{
		Home:    filepath.Join(o.Root, layersDir, name),
		Run:     filepath.Join(o.Root, runDir, name),
		Options: o.DriverOptions,
		Log:     o.Log,
	}
}
