//go:build engines

package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"plyfs/internal/e2e/listing"
)

// busybox is where Debian's busybox-static puts its program.
const busybox = "/bin/busybox"

// engineImage is the test image with a busybox in its lowest layer, so that it can run.
func engineImage(t *testing.T) *image {
	t.Helper()
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatalf("a static busybox is needed (package busybox-static): %v", err)
	}
	return testImage(func(im *image) {
		for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "root", "mnt", "home"} {
			im.dir(d)
		}
		im.put("tmp", listing.Entry{Type: "dir", Mode: 0o1777})
		im.put("bin/busybox", listing.Entry{Type: "file", Mode: 0o755, Data: program})
		for _, applet := range strings.Fields("sh ls cat rm mv cp mkdir rmdir ln echo stat find dd sleep id touch chmod chown test wc true") {
			im.symlink("bin/"+applet, "busybox")
		}
		im.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1001:guest:/home:/bin/sh\n")
		im.file("etc/group", "root:x:0:\nguest:x:1001:\n")
	})
}

// descriptor refers to a blob of an OCI image.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// config is the part of an image's configuration that engines read.
type config struct {
	Architecture string    `json:"architecture"`
	OS           string    `json:"os"`
	Created      time.Time `json:"created"`
	Config       struct {
		Env []string
		Cmd []string
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
	History []map[string]string `json:"history"`
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// files returns the layers of an image as tar files, and its configuration.
func (im *image) files() (layers [][]byte, conf []byte) {
	c := config{Architecture: runtime.GOARCH, OS: "linux", Created: time.Unix(epoch, 0).UTC()}
	c.Config.Env = []string{"PATH=/bin"}
	c.Config.Cmd = []string{"sh"}
	if im.cmd != nil {
		c.Config.Cmd = im.cmd
	}
	c.RootFS.Type = "layers"
	for i := range im.layers {
		layer := im.tarball(i)
		layers = append(layers, layer)
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, "sha256:"+digest(layer))
		c.History = append(c.History, map[string]string{"created_by": fmt.Sprintf("layer %d", i)})
	}
	return layers, mustJSON(c)
}

// tarball returns layer i as a tar file. The same image gives the same bytes.
func (im *image) tarball(i int) []byte {
	content := make(map[string][]byte)
	for _, c := range im.layers[i] {
		if c.obj != nil {
			content[c.path] = c.obj.Data
		}
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range im.members(i) {
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		if h.Size > 0 {
			if _, err := w.Write(content[h.Name]); err != nil {
				panic(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// archiveMember is a file of an archive.
type archiveMember struct {
	name string
	data []byte
}

// writeArchive writes a tar file that everyone may read.
func writeArchive(t *testing.T, path string, members []archiveMember) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: m.name, Mode: 0o644, Size: int64(len(m.data)), ModTime: time.Unix(epoch, 0)}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(m.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// writeDocker writes the image in the form of docker save.
func (im *image) writeDocker(t *testing.T, path, name string) {
	t.Helper()
	layers, conf := im.files()
	var members []archiveMember
	var names []string
	for _, l := range layers {
		name := digest(l) + "/layer.tar"
		names = append(names, name)
		members = append(members, archiveMember{name, l})
	}
	confName := digest(conf) + ".json"
	manifest := mustJSON([]map[string]any{{"Config": confName, "RepoTags": []string{name}, "Layers": names}})
	members = append(members, archiveMember{confName, conf}, archiveMember{"manifest.json", manifest})
	writeArchive(t, path, members)
}

// writeOCI writes the image as an archive of an OCI image layout.
func (im *image) writeOCI(t *testing.T, path, name string) {
	t.Helper()
	layers, conf := im.files()
	var members []archiveMember
	blob := func(mediaType string, data []byte) descriptor {
		d := digest(data)
		members = append(members, archiveMember{"blobs/sha256/" + d, data})
		return descriptor{MediaType: mediaType, Digest: "sha256:" + d, Size: len(data)}
	}
	manifest := map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": blob("application/vnd.oci.image.config.v1+json", conf),
	}
	var refs []descriptor
	for _, l := range layers {
		refs = append(refs, blob("application/vnd.oci.image.layer.v1.tar", l))
	}
	manifest["layers"] = refs
	top := blob("application/vnd.oci.image.manifest.v1+json", mustJSON(manifest))
	top.Annotations = map[string]string{"org.opencontainers.image.ref.name": name}
	index := mustJSON(map[string]any{"schemaVersion": 2, "manifests": []descriptor{top}})
	members = append(members, archiveMember{"index.json", index},
		archiveMember{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)})
	writeArchive(t, path, members)
}
