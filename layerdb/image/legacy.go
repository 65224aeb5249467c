package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/drivers"
	"plyfs/layerdb"
)

// LegacyResult is what ImportLegacy brought in.
type LegacyResult struct {
	layerdb.LegacyResult
	Images []Image
	// SkippedImages were not imported, for the reason that stands with them; Source is the id in the old store.
	SkippedImages []layerdb.LegacySkipped
}

// oldImage is an image of an old store.
type oldImage struct {
	id       string
	config   []byte
	manifest []byte // nil if there is none
	names    []string
	skip     string // why it cannot be imported; "" if it can
}

// ImportLegacy brings in the layers of a store that another program left behind (see layerdb.Store.ImportLegacy), and its images:
// their configs, byte for byte, and all their names. An image of which a layer did not come in exactly is skipped.
func (s *Store) ImportLegacy(ctx context.Context, dir string, o layerdb.LegacyOptions) (res LegacyResult, err error) {
	if res.LegacyResult, err = s.layers.ImportLegacy(ctx, dir, o); err != nil {
		return res, err
	}
	old, err := listOldImages(dir, res.Kind)
	if err != nil {
		return res, fmt.Errorf("import images of store %s: %w", dir, err)
	}
	for _, l := range old {
		img, reason, err := s.adopt(ctx, l)
		if err != nil {
			return res, fmt.Errorf("import image %s of store %s: %w", l.id, dir, err)
		}
		if reason != "" {
			res.SkippedImages = append(res.SkippedImages, layerdb.LegacySkipped{Source: l.id, Reason: reason})
			continue
		}
		res.Images = append(res.Images, img)
	}
	return res, nil
}

// adopt publishes an image whose layers are in the store. The error is one of this store or of ctx: what is wrong with the image
// is a reason.
func (s *Store) adopt(ctx context.Context, old oldImage) (img Image, reason string, err error) {
	if old.skip != "" {
		return img, old.skip, nil
	}
	config, err := parseConfig(old.config)
	if err != nil {
		return img, err.Error(), nil
	}
	s.adding.RLock()
	defer s.adding.RUnlock()
	if n := len(config.RootFS.DiffIDs); n > 0 {
		_, err := s.layers.Layer(ctx, layerdb.ChainOf(config.RootFS.DiffIDs...))
		if errors.Is(err, drivers.ErrNotFound) {
			return img, "not all of its layers were imported exactly", nil
		}
		if err != nil {
			return img, "", err
		}
	}
	in := incoming{config: old.config, layers: make([]incomingLayer, len(config.RootFS.DiffIDs))}
	in.adoptManifest(old.manifest)
	in.adoptNames(old.names)
	if img, err = s.describe(ctx, in, config); err != nil {
		return img, "", err
	}
	img, err = s.publish(ctx, img, in, layerdb.Ref{})
	return img, "", err
}

// adoptManifest takes the manifest over if it is that of the image; an image without one gets a new one when it is exported.
func (in *incoming) adoptManifest(raw []byte) {
	kind, err := kindOf(raw, "")
	if err != nil || !isManifest(kind) {
		return
	}
	m, err := parseManifest(raw)
	if err != nil || m.Config.Digest != digest.FromBytes(in.config) || len(m.Layers) != len(in.layers) {
		return
	}
	in.manifest = document{
		raw: raw, desc: ocispec.Descriptor{MediaType: kind, Digest: digest.FromBytes(raw), Size: int64(len(raw))},
	}
	for i, l := range m.Layers {
		in.layers[i].desc = l
	}
}

// adoptNames takes the names over, and the first place in a registry.
func (in *incoming) adoptNames(names []string) {
	for _, s := range names {
		n, err := ParseName(s)
		switch {
		case err != nil:
		case n.Digest == "":
			in.names = append(in.names, n)
		case in.origin == "":
			in.origin = n.Repository() + "@" + n.Digest.String()
		}
	}
}

// listOldImages lists the images of a store by its kind, in the order of their ids.
func listOldImages(dir string, kind layerdb.LegacyKind) (all []oldImage, err error) {
	if driver, ok := strings.CutPrefix(string(kind), "moby-"); ok {
		all, err = listMobyImages(filepath.Join(dir, "image", driver))
	} else if driver, ok := strings.CutPrefix(string(kind), "containers-"); ok {
		all, err = listStorageImages(filepath.Join(dir, driver+"-images"))
	}
	slices.SortFunc(all, func(a, b oldImage) int { return strings.Compare(a.id, b.id) })
	return all, err
}

// listMobyImages reads imagedb, where each config is a file called by its digest, and repositories.json, which has the names.
func listMobyImages(dir string) (all []oldImage, err error) {
	var repositories struct {
		Repositories map[string]map[string]string
	}
	raw, err := readFile(filepath.Join(dir, "repositories.json"))
	if err == nil {
		if err := json.Unmarshal(raw, &repositories); err != nil {
			return nil, fmt.Errorf("repositories.json: %w: %w", err, drivers.ErrDamaged)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	names := make(map[string][]string)
	for _, refs := range repositories.Repositories {
		for name, id := range refs {
			names[id] = append(names[id], name)
		}
	}
	configs := filepath.Join(dir, "imagedb/content/sha256")
	entries, err := os.ReadDir(configs)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		img := oldImage{id: "sha256:" + e.Name()}
		img.names = names[img.id]
		slices.Sort(img.names)
		img.readConfig(filepath.Join(configs, e.Name()), digest.Digest(img.id))
		all = append(all, img)
	}
	return all, nil
}

// readConfig reads the config, which must have the digest.
func (i *oldImage) readConfig(path string, d digest.Digest) {
	raw, err := readFile(path)
	switch {
	case err != nil:
		i.skip = fmt.Sprintf("its config: %v", err)
	case d.Validate() != nil:
		i.skip = fmt.Sprintf("its config has no digest for a name, but %q", string(d))
	case d.Algorithm().FromBytes(raw) != d:
		i.skip = fmt.Sprintf("its config is not what its digest %s promises", d)
	default:
		i.config = raw
	}
}

// storageImage is what is read of an image in images.json of containers/storage.
type storageImage struct {
	ID       string   `json:"id"`
	Names    []string `json:"names"`
	BigNames []string `json:"big-data-names"`
}

// listStorageImages reads images.json of containers/storage, and the documents that it keeps beside it as big data.
func listStorageImages(dir string) (all []oldImage, err error) {
	raw, err := readFile(filepath.Join(dir, "images.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []storageImage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("images.json: %w: %w", err, drivers.ErrDamaged)
	}
	for _, e := range list {
		img := oldImage{id: e.ID, names: e.Names}
		// The config is called by its digest, which is the id, too, but for some algorithms that nobody uses.
		config := "sha256:" + e.ID
		switch {
		case drivers.ValidID(e.ID) != nil:
			img.skip = fmt.Sprintf("%q is no id", e.ID)
		case !slices.Contains(e.BigNames, config):
			img.skip = "it has no config; manifest lists and things that are no images are not imported"
		default:
			img.readConfig(filepath.Join(dir, e.ID, bigDataFile(config)), digest.Digest(config))
			if img.manifest, err = readFile(filepath.Join(dir, e.ID, "manifest")); err != nil {
				img.manifest = nil
			}
		}
		all = append(all, img)
	}
	return all, nil
}

// bigDataFile is the name of the file with big data: the key, or what base64 makes of one with other characters (cf.
// containers/storage utils.go makeBigDataBaseName).
func bigDataFile(key string) string {
	plain := func(r rune) bool { return r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' }
	if !strings.ContainsFunc(key, func(r rune) bool { return !plain(r) }) {
		return key
	}
	return "=" + base64.StdEncoding.EncodeToString([]byte(key))
}

// readFile reads a file of bounded size.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(f, maxDocument)
}
