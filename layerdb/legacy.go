package layerdb

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/asm"

	"plyfs/cow/layer"
	"plyfs/cow/tarlayer"
	"plyfs/drivers"
)

// LegacyKind is a store that another program left behind: whose records it has, and how its layers are laid out.
type LegacyKind string

// The kinds. The directory of a moby kind is Docker's data root (/var/lib/docker), that of a containers kind the graph root of
// containers/storage (/var/lib/containers/storage).
const (
	LegacyMobyOverlay2      LegacyKind = "moby-overlay2"
	LegacyMobyOverlay       LegacyKind = "moby-overlay"
	LegacyMobyAUFS          LegacyKind = "moby-aufs"
	LegacyMobyVFS           LegacyKind = "moby-vfs"
	LegacyContainersOverlay LegacyKind = "containers-overlay"
	LegacyContainersVFS     LegacyKind = "containers-vfs"
)

// LegacyOptions are options of ImportLegacy; the zero value detects the kind, and lets nobody hold the layers.
type LegacyOptions struct {
	Kind LegacyKind
	// Hold becomes a holder of every layer that is imported.
	Hold *Holder
	// Progress is called before each layer. It may be nil.
	Progress func(id string, done, total int)
}

// LegacyResult is what ImportLegacy did.
type LegacyResult struct {
	Kind   LegacyKind    `json:"kind"`
	Layers []LegacyLayer `json:"layers"`
	// Skipped are layers that were not imported, with the reason.
	Skipped []LegacySkipped `json:"skipped,omitempty"`
}

// LegacyLayer is an imported layer.
type LegacyLayer struct {
	// Source is its name in the old store: a ChainID for moby, an id for containers/storage.
	Source string  `json:"source"`
	Layer  ChainID `json:"layer"`
	// Exact says that the old store could give the exact stream, whose DiffID was compared. Else the stream was made anew, and the
	// DiffID may be another than that in configurations of images.
	Exact bool `json:"exact"`
}

// LegacySkipped is a layer that was not imported.
type LegacySkipped struct {
	Source string `json:"source"`
	Reason string `json:"reason"`
}

// treeForm says what a layer's directory in an old store holds.
type treeForm int

const (
	formStacked treeForm = iota // what differs from the layers below, with whiteouts of overlayfs or AUFS
	formFull                    // all that the layer shows
)

// oldLayer is a layer of an old store.
type oldLayer struct {
	id, parent string
	dir        string
	form       treeForm
	diffID     digest.Digest // "" if the store does not tell
	split      string        // file with the tar-split data, gzip; "" if there is none
	// skip is why it cannot be imported; "" if it can.
	skip string
}

// detectLegacy finds out what kind of store is in dir. The error wraps drivers.ErrNotFound if there is none, and lists them all if
// there is more than one, wrapping drivers.ErrInvalid.
func detectLegacy(dir string) (LegacyKind, error) {
	var found []LegacyKind
	for _, l := range legacyLayouts() {
		if exists(filepath.Join(dir, l.records)) {
			found = append(found, l.kind)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", fmt.Errorf("store to import at %s: %w: it has neither image/DRIVER/layerdb (moby) nor DRIVER-layers/layers.json "+
			"(containers/storage) of a driver that is known here", dir, drivers.ErrNotFound)
	}
	return "", fmt.Errorf("there are several stores at %s, of which one must be chosen: %v: %w", dir, found, drivers.ErrInvalid)
}

// legacyLayout says where a kind of store has what.
type legacyLayout struct {
	kind    LegacyKind
	records string // beneath the store, what tells that it is there
	layers  string // beneath the store, the directory that holds those of layers
	inside  string // beneath the directory of a layer, its tree
	form    treeForm
	list    func(dir string, l legacyLayout) ([]oldLayer, error)
}

func legacyLayouts() []legacyLayout {
	const image, sha, list = "image", "layerdb/sha256", "layers.json"
	return []legacyLayout{
		{LegacyMobyOverlay2, filepath.Join(image, "overlay2", sha), "overlay2", "diff", formStacked, listMoby},
		{LegacyMobyOverlay, filepath.Join(image, "overlay", sha), "overlay", "root", formFull, listMoby},
		{LegacyMobyAUFS, filepath.Join(image, "aufs", sha), "aufs/diff", "", formStacked, listMoby},
		{LegacyMobyVFS, filepath.Join(image, "vfs", sha), "vfs/dir", "", formFull, listMoby},
		{LegacyContainersOverlay, filepath.Join("overlay-layers", list), "overlay", "diff", formStacked, listContainers},
		{LegacyContainersVFS, filepath.Join("vfs-layers", list), "vfs/dir", "", formFull, listContainers},
	}
}

// ImportLegacy registers the image layers of a store that another program left behind, which it only reads; that program must
// not run meanwhile. Layers come out as the streams that they came from, with the same DiffIDs, where the old store
// has the data for that, and are made anew otherwise. A layer that cannot be read is skipped, with those on top of it.
func (s *Store) ImportLegacy(ctx context.Context, dir string, o LegacyOptions) (LegacyResult, error) {
	leave, err := s.gate.enter()
	if err != nil {
		return LegacyResult{}, err
	}
	defer leave()
	if o.Kind == "" {
		if o.Kind, err = detectLegacy(dir); err != nil {
			return LegacyResult{}, err
		}
	}
	res := LegacyResult{Kind: o.Kind}
	old, err := listLegacy(dir, o.Kind)
	if err != nil {
		return res, fmt.Errorf("import store %s: %w", dir, err)
	}
	im := &legacyImport{store: s, opt: o, byID: make(map[string]oldLayer), done: make(map[string]ChainID), res: res}
	for _, l := range old {
		im.byID[l.id] = l
	}
	for i, l := range parentsFirstOld(old) {
		if o.Progress != nil {
			o.Progress(l.id, i, len(old))
		}
		if err := im.add(ctx, l); err != nil {
			return im.res, fmt.Errorf("import layer %s of store %s: %w", l.id, dir, err)
		}
	}
	return im.res, nil
}

func listLegacy(dir string, kind LegacyKind) ([]oldLayer, error) {
	for _, l := range legacyLayouts() {
		if l.kind == kind {
			return l.list(dir, l)
		}
	}
	return nil, fmt.Errorf("kind of store %q: %w", kind, drivers.ErrNotSupported)
}

// parentsFirstOld orders layers; those whose parents go round in a circle are left out.
func parentsFirstOld(all []oldLayer) (ordered []oldLayer) {
	known := make(map[string]bool)
	children := make(map[string][]oldLayer)
	for _, l := range all {
		known[l.id] = true
		children[l.parent] = append(children[l.parent], l)
	}
	var todo []oldLayer
	for _, l := range all {
		if l.parent == "" || !known[l.parent] {
			todo = append(todo, l)
		}
	}
	for len(todo) > 0 {
		l := todo[0]
		todo = append(todo[1:], children[l.id]...)
		ordered = append(ordered, l)
	}
	return ordered
}

// legacyImport is the state of one ImportLegacy.
type legacyImport struct {
	store *Store
	opt   LegacyOptions
	byID  map[string]oldLayer
	done  map[string]ChainID
	res   LegacyResult
}

func (im *legacyImport) skip(l oldLayer, reason string) {
	im.store.log.Warn("a layer is not imported", "layer", l.id, "reason", reason)
	im.res.Skipped = append(im.res.Skipped, LegacySkipped{Source: l.id, Reason: reason})
}

// add registers one layer, or skips it. The error is one of this store or of ctx: what is wrong with the layer is a reason.
func (im *legacyImport) add(ctx context.Context, l oldLayer) error {
	parent, ok := im.done[l.parent]
	switch {
	case l.skip != "":
		im.skip(l, l.skip)
		return nil
	case l.parent != "" && !ok:
		im.skip(l, "its parent "+l.parent+" was not imported")
		return nil
	}
	exact := l.split != "" && l.diffID != ""
	o := RegisterOptions{Hold: im.opt.Hold}
	if exact {
		o.ExpectDiffID = l.diffID
	}
	pr, pw := io.Pipe()
	made := make(chan error, 1)
	go func() {
		err := im.stream(ctx, l, exact, pw)
		pw.CloseWithError(err)
		made <- err
	}()
	got, err := im.store.register(ctx, ownInput(pr), parent, o)
	pr.CloseWithError(errAbandoned)
	was := <-made
	switch {
	case was != nil && !errors.Is(was, errAbandoned) && ctx.Err() == nil, errors.Is(err, ErrDigest):
		im.skip(l, errors.Join(was, err).Error())
		return nil
	case err != nil:
		return err
	}
	im.done[l.id] = got.ID
	im.res.Layers = append(im.res.Layers, LegacyLayer{Source: l.id, Layer: got.ID, Exact: exact})
	return nil
}

// stream writes the layer's tar stream.
func (im *legacyImport) stream(ctx context.Context, l oldLayer, exact bool, w io.Writer) error {
	w = &contextWriter{ctx, w}
	root, err := layer.Open(l.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	switch {
	case exact:
		return assemble(&tree{root}, l.split, w)
	case l.form == formStacked:
		return writeStacked(ctx, w, root)
	case l.parent == "":
		return writePlain(ctx, w, root, nil)
	}
	below, err := layer.Open(im.byID[l.parent].dir)
	if err != nil {
		return err
	}
	defer below.Close()
	return writePlain(ctx, w, root, below)
}

// assemble writes the stream that was taken apart to the file split.
func assemble(t *tree, split string, w io.Writer) error {
	f, err := os.Open(split)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("%s: %w", split, err)
	}
	return asm.WriteOutputTarStream(t, newEntries(z), w)
}

// writePlain writes what root has and below (nil for nothing) has not.
func writePlain(ctx context.Context, w io.Writer, root, below *layer.Layer) (err error) {
	src := tarlayer.NewDirSource(root, tarlayer.DirOptions{})
	defer func() { err = errors.Join(err, src.Close()) }()
	if below == nil {
		return tarlayer.WriteAll(ctx, w, src, tarlayer.WriteOptions{})
	}
	changes, err := tarlayer.Compare(ctx, below, root, tarlayer.CompareOptions{})
	if err != nil {
		return err
	}
	return tarlayer.Write(ctx, w, src, changes, tarlayer.WriteOptions{})
}
