//go:build engines

package e2e

import (
	"strings"
	"testing"

	"plyfs/internal/e2e/listing"
)

// TestBuildah builds images with buildah, step by step and from a Dockerfile.
func TestBuildah(t *testing.T) { asEachInstalled(t, buildah) }

func buildah(t *testing.T, e *engine) {
	im := engineImage(t)
	im.writeOCI(t, e.path("oci.tar"), imageName)
	want := listing.Lines(im.entries("data"))
	dump := e.treedump()
	list := func(container string) []string {
		t.Helper()
		// Root may mount in its own namespace, a user within that which buildah unshare enters.
		script := `m=$(buildah mount ` + container + `) && ` + dump + ` "$m" data && buildah umount ` + container + ` >/dev/null`
		args := []string{"sh", "-ec", script}
		if e.uid != 0 {
			args = append([]string{"buildah", "unshare"}, args...)
		}
		return strings.Split(strings.TrimSuffix(e.run(t, args...), "\n"), "\n")
	}

	e.run(t, "buildah", "pull", "-q", "oci-archive:"+e.path("oci.tar"))
	from := strings.TrimSpace(e.run(t, "buildah", "from", imageName))
	checkLines(t, "buildah mount", want, list(from))
	e.run(t, "buildah", "run", from, "--", "sh", "-ec", work)
	e.run(t, "buildah", "copy", "-q", from, e.path("oci.tar"), "/data/shared/copied")
	expect(t, "buildah run", e.run(t, "buildah", "run", from, "--", "sh", "-c", "cat /data/made2; ls /data/moved/a/b"),
		"made\nstays\n")
	changed := list(from)
	e.run(t, "buildah", "commit", "-q", from, "localhost/committed")
	again := strings.TrimSpace(e.run(t, "buildah", "from", "localhost/committed"))
	checkLines(t, "the committed image", changed, list(again))
	e.run(t, "buildah", "rm", from, again)
	if !testing.Short() {
		e.buildWith(t, "buildah", "build", "--isolation=chroot")
	}
	e.run(t, "buildah", "rmi", "-f", "localhost/committed", imageName)
}
