//go:build engines

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"plyfs/internal/testenv"
)

// storeName is the image that comes out of the store.
const storeName = "localhost/stored:latest"

// storeTest is a store of one driver, beside an engine.
type storeTest struct {
	*engine
	bin    string
	driver string
}

// plyfs runs the program on the store, as the engine's user.
func (s *storeTest) plyfs(t *testing.T, args ...string) string {
	t.Helper()
	return strings.TrimSpace(s.run(t, s.args(args...)...))
}

func (s *storeTest) args(args ...string) []string {
	env := []string{"env", "PLYFS_ROOT=" + s.path("store-"+s.driver), "PLYFS_DRIVER=" + s.driver}
	return append(append(env, s.bin), args...)
}

// shell runs a script in which plyfs is the program, where its mounts are seen.
func (s *storeTest) shell(t *testing.T, script string) string {
	t.Helper()
	script = "set -e; plyfs() { " + s.bin + ` "$@"; }; ` + script
	if s.uid == 0 {
		return s.run(t, append(s.args()[:3], "sh", "-c", script)...)
	}
	return s.run(t, s.args("unshare", "sh", "-c", script)...)
}

// TestStore: what podman saves goes through the store of each driver, and what comes out is what podman loads.
func TestStore(t *testing.T) { asEach(t, storeWithPodman) }

func storeWithPodman(t *testing.T, e *engine) {
	engineImage(t).writeOCI(t, e.path("oci.tar"), imageName)
	p := &podmanTest{engine: e, dump: e.treedump() + ":/treedump:ro"}
	e.run(t, "podman", "load", "-q", "-i", e.path("oci.tar"))
	e.run(t, "podman", "save", "-q", "--format", "docker-archive", "-o", e.path("saved.tar"), imageName)
	if err := os.WriteFile(e.path("work.sh"), []byte(work), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, driver := range []string{"plyfs", "overlay2"} {
		t.Run(driver, func(t *testing.T) {
			s := &storeTest{engine: e, bin: testenv.Binary(t), driver: driver}
			// What podman saved and what it loaded is one image.
			fromOCI := s.plyfs(t, "image", "import", e.path("oci.tar"))
			expect(t, "the id of the image of podman save", s.plyfs(t, "image", "import", e.path("saved.tar")), fromOCI)
			s.plyfs(t, "container", "create", imageName, "c")
			dumped := s.shell(t, fmt.Sprintf(`root=$(plyfs container mount c); chroot "$root" /bin/sh -es <%s; %s "$root" data; plyfs container umount c`,
				e.path("work.sh"), e.path("treedump")))
			s.plyfs(t, "container", "commit", "c", storeName, "--change", "CMD cat /data/made")
			for _, form := range []string{"docker-archive", "oci-archive"} {
				s.plyfs(t, "image", "export", "--format", form, "-o", e.path("out.tar"), storeName)
				e.run(t, "podman", "load", "-q", "-i", e.path("out.tar"))
				checkLines(t, "the committed image, out of the "+form, strings.Split(strings.TrimSuffix(dumped, "\n"), "\n"), p.list(t, storeName))
				expect(t, "the command of the image", e.run(t, "podman", "run", "--rm", storeName), "made\n")
				e.run(t, "podman", "rmi", storeName)
			}
			s.plyfs(t, "container", "rm", "c")
			s.plyfs(t, "layer", "check", "--content")
			s.plyfs(t, "image", "rm", "--force", storeName, imageName)
			expect(t, "layers left", s.plyfs(t, "layer", "ls"), "")
			s.remove(t)
		})
	}
}

// remove removes the store, whose files belong to others than the user.
func (s *storeTest) remove(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(s.path("store-" + s.driver)); err != nil {
		t.Error(err)
	}
}
