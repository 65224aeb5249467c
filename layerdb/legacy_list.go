package layerdb

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"plyfs/drivers"
)

// listMoby reads the layers of Docker's layer database: a directory for each ChainID with the files cache-id (the driver's
// name of it), diff (the DiffID), parent (absent for none) and tar-split.json.gz.
func listMoby(dir string, lay legacyLayout) ([]oldLayer, error) {
	entries, err := os.ReadDir(filepath.Join(dir, lay.records))
	if err != nil {
		return nil, err
	}
	var all []oldLayer
	for _, e := range entries {
		at := filepath.Join(dir, lay.records, e.Name())
		l := oldLayer{id: "sha256:" + e.Name(), form: lay.form}
		if err := ChainID(l.id).Validate(); err != nil {
			continue // being written when its daemon ended
		}
		if err := l.readMoby(dir, at, lay); err != nil {
			l.skip = err.Error()
		}
		all = append(all, l)
	}
	return all, nil
}

func (l *oldLayer) readMoby(dir, at string, lay legacyLayout) error {
	cache, err := readWord(filepath.Join(at, "cache-id"))
	if err != nil {
		return err
	}
	if l.dir, err = treeOf(dir, cache, lay); err != nil {
		return err
	}
	diff, err := readWord(filepath.Join(at, "diff"))
	if err != nil {
		return err
	}
	l.diffID = digest.Digest(diff)
	if err := validDigest(l.diffID); err != nil {
		return fmt.Errorf("file diff: %w", err)
	}
	l.parent, err = readWord(filepath.Join(at, "parent"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if split := filepath.Join(at, "tar-split.json.gz"); exists(split) {
		l.split = split
	}
	return nil
}

func readWord(path string) (string, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}

// treeOf returns the directory of the driver's layer id, which comes from a file and must not lead elsewhere.
func treeOf(dir, id string, lay legacyLayout) (string, error) {
	if err := drivers.ValidID(id); err != nil {
		return "", err
	}
	path := filepath.Join(dir, lay.layers, id, lay.inside)
	if fi, err := os.Lstat(path); err != nil {
		return "", err
	} else if !fi.IsDir() {
		return "", fmt.Errorf("%s: not a directory: %w", path, drivers.ErrDamaged)
	}
	return path, nil
}

// storageLayer is what is read of a layer in layers.json of containers/storage.
type storageLayer struct {
	ID     string         `json:"id"`
	Parent string         `json:"parent"`
	DiffID digest.Digest  `json:"diff-digest"`
	Flags  map[string]any `json:"flags"`
}

// listContainers reads layers.json of containers/storage. Layers without a digest are those of containers, which are not
// imported.
func listContainers(dir string, lay legacyLayout) ([]oldLayer, error) {
	path := filepath.Join(dir, lay.records)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var list []storageLayer
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, drivers.ErrDamaged, err)
	}
	all := make([]oldLayer, 0, len(list))
	for _, e := range list {
		l := oldLayer{id: e.ID, parent: e.Parent, form: lay.form, diffID: e.DiffID}
		switch {
		case e.Flags["incomplete"] == true:
			l.skip = "it is not complete"
		case e.DiffID == "":
			l.skip = "it is a container's"
		default:
			if err := validDigest(e.DiffID); err != nil {
				l.skip = err.Error()
			} else if l.dir, err = treeOf(dir, e.ID, lay); err != nil {
				l.skip = err.Error()
			}
		}
		if split := filepath.Join(filepath.Dir(path), e.ID+".tar-split.gz"); l.skip == "" && exists(split) {
			l.split = split
		}
		all = append(all, l)
	}
	return all, nil
}
