//go:build engines

package e2e

import (
	"strings"
	"testing"

	"plyfs/internal/testenv"
)

// TestLegacyStore: what podman keeps comes into the store with its names, and goes out of it as the same image.
func TestLegacyStore(t *testing.T) { asEach(t, legacyStore) }

func legacyStore(t *testing.T, e *engine) {
	const second = "localhost/second:1"
	engineImage(t).writeOCI(t, e.path("oci.tar"), imageName)
	p := &podmanTest{engine: e, dump: e.treedump() + ":/treedump:ro"}
	e.run(t, "podman", "load", "-q", "-i", e.path("oci.tar"))
	e.run(t, "podman", "tag", imageName, second)
	want := p.list(t, imageName)
	id := "sha256:" + strings.TrimSpace(e.run(t, "podman", "image", "inspect", "--format", "{{.Id}}", imageName))

	s := &storeTest{engine: e, bin: testenv.Binary(t), driver: "plyfs"}
	var found string
	for line := range strings.Lines(s.plyfs(t, "layer", "import", e.path("graph"))) {
		if strings.HasPrefix(line, "image "+id) {
			found = line
		}
	}
	for _, name := range []string{imageName, second} {
		if !strings.Contains(found, " "+name) {
			t.Errorf("the image came in as %q, it had the name %s", found, name)
		}
	}
	s.plyfs(t, "layer", "check", "--content")
	s.plyfs(t, "image", "export", "--format", "docker-archive", "-o", e.path("out.tar"), second)
	e.run(t, "podman", "rmi", "-f", id)
	e.run(t, "podman", "load", "-q", "-i", e.path("out.tar"))
	got := "sha256:" + strings.TrimSpace(e.run(t, "podman", "image", "inspect", "--format", "{{.Id}}", second))
	expect(t, "the id of the image that went out", got, id)
	checkLines(t, "the image that went out", want, p.list(t, second))
	s.remove(t)
}
