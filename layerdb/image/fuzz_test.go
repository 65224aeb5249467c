package image

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// Names are read in one way: what is read of the normal form is the same.
func FuzzParseName(f *testing.F) {
	for _, s := range []string{"nginx", "a.b:5000/c/d:e", "x@" + someDigest, "localhost/a", "[::1]/a", "A/b", ":", "@", "a:b@c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseName(s)
		if err != nil {
			return
		}
		for _, form := range []string{n.String(), n.Familiar()} {
			if again, err := ParseName(form); err != nil || again != n {
				t.Errorf("%q is %+v; %q is %+v, %v", s, n, form, again, err)
			}
		}
	})
}

// Whatever a document says, it names no file but a blob.
func FuzzDocuments(f *testing.F) {
	layout, _ := twoLayers(f)
	for name, data := range layout {
		if len(data) > 0 && data[0] == '{' {
			f.Add(data)
		}
		f.Add([]byte(`{"manifests":[{"digest":"sha256:` + strings.TrimPrefix(name, "blobs/sha256/") + `","size":1}]}`))
	}
	f.Add([]byte(`{"layers":[{"digest":"sha256:../../x","size":1}],"config":{}}`))
	b := &blobs{dir: "/blobs"}
	inside := func(t *testing.T, d digest.Digest) {
		rel, err := filepath.Rel("/blobs/"+d.Algorithm().String(), b.path(d))
		if err != nil || rel != d.Encoded() || strings.ContainsAny(rel, "/.") || filepath.Clean(blobName(d)) != blobName(d) {
			t.Errorf("%q is %s", d, b.path(d))
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if kind, err := kindOf(raw, ""); err == nil && !isIndex(kind) && !isManifest(kind) {
			t.Errorf("kind %q", kind)
		}
		if index, err := parseIndex(raw); err == nil {
			for _, d := range index.Manifests {
				inside(t, d.Digest)
			}
		}
		if m, err := parseManifest(raw); err == nil {
			inside(t, m.Config.Digest)
			for _, d := range m.Layers {
				inside(t, d.Digest)
			}
		}
		if c, err := parseConfig(raw); err == nil {
			for _, d := range c.RootFS.DiffIDs {
				inside(t, d)
			}
			e := editor{message: "m"}
			if out, err := e.apply(raw, c.RootFS.DiffIDs); err == nil {
				if _, err := parseConfig(out); err != nil {
					t.Errorf("an edited config is not read: %v", err)
				}
			}
		}
	})
}
