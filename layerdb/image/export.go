package image

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/drivers"
)

// Form is the form of an export.
type Form string

// The forms.
const (
	// FormOCI is an OCI layout in a tar file.
	FormOCI Form = "oci-archive"
	// FormDocker is what docker save writes: a tar file that all versions of docker and podman load. Its layers are not
	// compressed.
	FormDocker Form = "docker-archive"
	// FormDir is an OCI layout in a directory.
	FormDir Form = "oci"
)

// ExportOptions say how images are exported.
type ExportOptions struct {
	Form    Form
	Packing Packing
	Report  Report
}

// Exported is an image to export.
type Exported struct {
	Image Image
	// Names are given to the image in the export.
	Names []Name
}

// Export writes images as one archive. The bytes of layers and configs are those that came in; manifests, too, if
// Result.Rewritten does not say otherwise. The error wraps drivers.ErrInvalid for FormDir, or for a packing that the form
// does not have.
func (s *Store) Export(ctx context.Context, w io.Writer, images []Exported, o ExportOptions) ([]Result, error) {
	sink := newTarSink(w)
	var results []Result
	var err error
	switch o.Form {
	case FormOCI:
		results, err = s.exportOCI(ctx, sink, images, o)
	case FormDocker:
		results, err = s.exportDocker(ctx, sink, images, o)
	default:
		return nil, fmt.Errorf("form %q of an archive: %w; there are %s and %s", string(o.Form), drivers.ErrInvalid, FormOCI, FormDocker)
	}
	if err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	return results, sink.w.Close()
}

// ExportDir writes images as an OCI layout in a new directory, whose parent must be there. After an error nothing is there.
// The error wraps drivers.ErrExists if something is there already.
func (s *Store) ExportDir(ctx context.Context, dir string, images []Exported, o ExportOptions) (results []Result, err error) {
	if _, err := os.Lstat(dir); err == nil {
		return nil, fmt.Errorf("export to %s: %w", dir, drivers.ErrExists)
	}
	// The umask says who may look into it.
	tmp := filepath.Join(filepath.Dir(filepath.Clean(dir)), ".plyfs-export-"+rand.Text())
	if err := os.Mkdir(tmp, 0o755); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("export to %s: directory %s: %w; make it first", dir, filepath.Dir(tmp), drivers.ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("export to %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("export to %s: %w", dir, err), os.RemoveAll(tmp))
		}
	}()
	if results, err = s.exportOCI(ctx, dirSink(tmp), images, o); err != nil {
		return nil, err
	}
	return results, os.Rename(tmp, dir)
}

// exportSink takes the files of an export.
type exportSink interface {
	// put writes a file of size bytes; one of that name that was put before is left as it is.
	put(ctx context.Context, name string, size int64, open opener) error
}

// exportOCI writes an OCI layout.
func (s *Store) exportOCI(ctx context.Context, sink exportSink, images []Exported, o ExportOptions) (results []Result, err error) {
	put := func(d ocispec.Descriptor, open opener) error {
		return sink.put(ctx, blobName(d.Digest), d.Size, open)
	}
	mark, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return nil, err
	}
	if err := sink.put(ctx, ocispec.ImageLayoutFile, int64(len(mark)), documentOpener(mark)); err != nil {
		return nil, err
	}
	index := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{},
	}
	for _, e := range images {
		out, err := s.pack(ctx, e.Image, o.Packing, o.Report)
		if err != nil {
			return nil, err
		}
		defer out.close()
		config := ocispec.Descriptor{Digest: e.Image.ID, Size: int64(len(out.config))}
		errs := []error{put(out.manifest.desc, documentOpener(out.manifest.raw)), put(config, documentOpener(out.config))}
		for _, l := range out.layers {
			if err := errors.Join(errs...); err != nil {
				return nil, err
			}
			errs = append(errs, put(l.desc, l.open))
		}
		if err := errors.Join(errs...); err != nil {
			return nil, err
		}
		index.Manifests = append(index.Manifests, indexEntries(e, out.manifest.desc)...)
		results = append(results, Result{Image: e.Image.ID, Manifest: out.manifest.desc.Digest, Rewritten: out.rewritten})
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return nil, err
	}
	return results, sink.put(ctx, ocispec.ImageIndexFile, int64(len(raw)), documentOpener(raw))
}

// indexEntries are the entries of an image in an index, one for each name.
func indexEntries(e Exported, manifest ocispec.Descriptor) []ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: manifest.MediaType, Digest: manifest.Digest, Size: manifest.Size}
	if p, err := ParsePlatform(e.Image.Platform); err == nil {
		d.Platform = &p
	}
	if len(e.Names) == 0 {
		return []ocispec.Descriptor{d}
	}
	var all []ocispec.Descriptor
	for _, n := range e.Names {
		// Podman reads the whole name in the standard annotation, containerd and docker in theirs.
		named := d
		named.Annotations = map[string]string{ocispec.AnnotationRefName: n.String(), containerdName: n.String()}
		all = append(all, named)
	}
	return all
}

// exportDocker writes what docker save does.
func (s *Store) exportDocker(ctx context.Context, sink exportSink, images []Exported, o ExportOptions) (results []Result, err error) {
	if o.Packing != PackAsCame && o.Packing != PackPlain {
		return nil, fmt.Errorf("compression %s in a docker archive: %w; its layers are plain tar files", o.Packing, drivers.ErrInvalid)
	}
	list := []dockerImage{}
	for _, e := range images {
		config, _, err := s.Config(ctx, e.Image)
		if err != nil {
			return nil, err
		}
		d := dockerImage{Config: e.Image.ID.Encoded() + ".json", Layers: []string{}}
		for _, n := range e.Names {
			d.RepoTags = append(d.RepoTags, n.String())
		}
		if err := sink.put(ctx, d.Config, int64(len(config)), documentOpener(config)); err != nil {
			return nil, err
		}
		for i, l := range e.Image.Layers {
			name := l.DiffID.Encoded() + ".tar"
			d.Layers = append(d.Layers, name)
			if err := sink.put(ctx, name, l.Size, reporting(s.exporter(e.Image.chain(i)), l, o.Report)); err != nil {
				return nil, fmt.Errorf("layer %s: %w", l.DiffID, err)
			}
		}
		list = append(list, d)
		results = append(results, Result{Image: e.Image.ID})
	}
	raw, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	return results, sink.put(ctx, dockerManifestFile, int64(len(raw)), documentOpener(raw))
}

// reporting returns open with a reader that reports how much of the layer was read.
func reporting(open opener, l Layer, report Report) opener {
	return func(ctx context.Context) (io.ReadCloser, error) {
		r, err := open(ctx)
		if err != nil {
			return nil, err
		}
		return closing{report.counted(r, Progress{Layer: l.DiffID.String(), Phase: PhasePack, Total: l.Size}), r.Close}, nil
	}
}

// tarSink writes a tar file in which nothing depends on when and by whom it is written.
type tarSink struct {
	w    *tar.Writer
	have map[string]bool
}

func newTarSink(w io.Writer) *tarSink {
	return &tarSink{w: tar.NewWriter(w), have: make(map[string]bool)}
}

func (t *tarSink) put(ctx context.Context, name string, size int64, open opener) error {
	if t.have[name] {
		return nil
	}
	t.have[name] = true
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
	if size > maxUSTAR {
		h.Format = tar.FormatPAX
	}
	if err := t.w.WriteHeader(h); err != nil {
		return err
	}
	return copyExactly(ctx, t.w, name, size, open)
}

// maxUSTAR is the largest file that a plain header can describe.
const maxUSTAR = 1<<33 - 1

// copyExactly copies a file of a known size; one of another size is an error.
func copyExactly(ctx context.Context, w io.Writer, name string, size int64, open opener) (err error) {
	r, err := open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if _, err := io.Copy(w, newVerifier("", size, contextReader{ctx, r})); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// dirSink is a directory that is being filled.
type dirSink string

func (d dirSink) put(ctx context.Context, name string, size int64, open opener) (err error) {
	to := filepath.Join(string(d), name)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := copyExactly(ctx, f, name, size, open); err != nil {
		return err
	}
	return f.Sync()
}

// ParseForm reads the name of a form; the error wraps drivers.ErrInvalid.
func ParseForm(s string) (Form, error) {
	switch f := Form(s); f {
	case FormOCI, FormDocker, FormDir:
		return f, nil
	}
	return "", fmt.Errorf("form %q: %w; there are %s, %s and %s", s, drivers.ErrInvalid, FormOCI, FormDocker, FormDir)
}

// ParsePacking reads the name of a packing; the error wraps drivers.ErrInvalid.
func ParsePacking(s string) (Packing, error) {
	p := Packing(s)
	_, err := p.compression()
	return p, err
}

var (
	_ exportSink = (*tarSink)(nil)
	_ exportSink = dirSink("")
)
