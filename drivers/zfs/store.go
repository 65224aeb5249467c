package zfs

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	zfs "github.com/mistifyio/go-zfs/v4"
	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

// maxName is the length of the longest name of a dataset or snapshot.
const maxName = 255

// store is what zfs.json holds.
type store struct {
	Dataset string `json:"dataset"`
	Token   string `json:"token"`
	// Ready says that the datasets were made: if they are missing then, they were destroyed.
	Ready bool `json:"ready"`
}

// openStore returns the dataset of the store in home, which it makes beneath fsname if home is new.
func openStore(home, fsname string) (base string, err error) {
	s, err := readStore(home)
	if errors.Is(err, fs.ErrNotExist) {
		s, err = newStore(home, fsname)
	}
	if err != nil {
		return "", err
	}
	if fsname != "" && filepath.Dir(s.Dataset) != fsname {
		return "", fmt.Errorf("option %s=%s: the store in %s has its layers in %s already: %w", optionFSName, fsname, home, s.Dataset,
			drivers.ErrInvalid)
	}
	if s.Ready {
		return s.Dataset, checkStore(s)
	}
	if err := makeDatasets(s); err != nil {
		return "", fmt.Errorf("make the datasets of a store: %w", err)
	}
	s.Ready = true
	return s.Dataset, s.write(home)
}

func readStore(home string) (s store, err error) {
	path := filepath.Join(home, "zfs.json")
	b, err := os.ReadFile(path)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("%s: %w: %w", path, err, drivers.ErrDamaged)
	}
	if s.Dataset == "" || s.Token == "" {
		return s, fmt.Errorf("%s names no dataset: %w", path, drivers.ErrDamaged)
	}
	return s, nil
}

func newStore(home, fsname string) (s store, err error) {
	if fsname == "" {
		if fsname, err = datasetAt(home); err != nil {
			return s, err
		}
	}
	token := strings.ToLower(rand.Text())[:12]
	s = store{Dataset: fsname + "/" + storePrefix + token, Token: token}
	if n := len(s.Dataset) + len("/"+containerGroup+"/") + drivers.MaxID + len(snapshotName()) + 1; n > maxName {
		return s, fmt.Errorf("dataset %s: its name is %d bytes too long for those of layers beneath it: %w", fsname, n-maxName,
			drivers.ErrInvalid)
	}
	// The name comes first: datasets that nobody knows are never left in the pool.
	return s, s.write(home)
}

func (s store) write(home string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	path := filepath.Join(home, "zfs.json")
	f, err := os.CreateTemp(home, ".zfs.json-")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// makeDatasets makes those of a store's datasets that are missing.
func makeDatasets(s store) error {
	for _, ds := range []struct {
		name       string
		properties map[string]string
	}{
		{s.Dataset, map[string]string{
			storeProperty: s.Token,
			"canmount":    "off",
			"mountpoint":  "legacy",
			// Names in a root file system are bytes. These can be told only now, and all beneath inherit them.
			"casesensitivity": "sensitive",
			"normalization":   "none", //nolint:misspell // so zfs spells it
			"utf8only":        "off",
			// Without, files have no access control lists, and capabilities cost a hidden directory each.
			"acltype": "posixacl",
			"xattr":   "sa",
			"devices": "on",
			"exec":    "on",
			"setuid":  "on",
			// A store beneath a dataset that is read-only for its owner's reasons could keep nothing.
			"readonly": "off",
		}},
		{s.Dataset + "/" + imageGroup, map[string]string{"canmount": "off"}},
		{s.Dataset + "/" + containerGroup, map[string]string{"canmount": "off"}},
	} {
		_, err := zfs.CreateFilesystem(ds.name, ds.properties)
		if err = explain(err); err != nil && !errors.Is(err, drivers.ErrExists) {
			return err
		}
	}
	return checkStore(s)
}

// checkStore makes sure that the dataset is that of the store.
func checkStore(s store) error {
	ds := zfs.Dataset{Name: s.Dataset}
	token, err := ds.GetProperty(storeProperty)
	if err = explain(err); errors.Is(err, errNoDataset) {
		return fmt.Errorf("dataset %s, in which the store has its layers, is gone; import its pool, or begin a new store: %w: %w", s.Dataset, err,
			drivers.ErrDamaged)
	}
	if err != nil {
		return err
	}
	if token != s.Token {
		return fmt.Errorf("dataset %s belongs to another store (%s=%s): %w", s.Dataset, storeProperty, token, drivers.ErrDamaged)
	}
	return nil
}

// datasetAt returns the dataset that a directory lies on. The error wraps ErrIncompatibleFS if it is on another file system.
func datasetAt(dir string) (string, error) {
	info, err := mountAt(dir)
	if err != nil {
		return "", fmt.Errorf("file system of %s: %w", dir, err)
	}
	if info.FSType != "zfs" {
		return "", fmt.Errorf("%s is not on zfs but on %s, and the option %s names no dataset: %w", dir, info.FSType, optionFSName,
			drivers.ErrIncompatibleFS)
	}
	return info.Source, nil
}

// sameDevice says whether a device number of mountinfo is that of st.
func sameDevice(major, minor int, st *unix.Stat_t) bool {
	return uint32(major) == unix.Major(st.Dev) && uint32(minor) == unix.Minor(st.Dev)
}
