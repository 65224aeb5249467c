//go:build engines

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"plyfs/internal/e2e/listing"
)

const imageName = "localhost/layers:latest"

// TestPodman runs podman's life of an image and its containers.
func TestPodman(t *testing.T) { asEachInstalled(t, podman) }

func podman(t *testing.T, e *engine) {
	im := engineImage(t)
	im.writeDocker(t, e.path("docker.tar"), imageName)
	im.writeOCI(t, e.path("oci.tar"), imageName)
	p := &podmanTest{engine: e, want: listing.Lines(im.entries("data")), dump: e.treedump() + ":/treedump:ro"}

	if info := e.run(t, "podman", "info", "--format", "{{.Store.GraphDriverName}} {{.Store.GraphOptions}}"); !strings.Contains(info, "fuse-overlayfs") {
		t.Errorf("podman info shows no mount program: %s", info)
	}
	e.run(t, "podman", "load", "-q", "-i", e.path("oci.tar"))
	checkLines(t, "the image of the OCI archive", p.want, p.list(t, imageName))
	t.Run("container", p.container)
	t.Run("overlay volume", p.volume)
	if e.uid != 0 {
		t.Run("keep-id", p.keepID)
	}
	if testing.Short() {
		return
	}
	t.Run("commit with an open file", p.commitOpen)
	t.Run("build", p.build)
	t.Run("read-only", p.readOnly)
	t.Run("parallel", p.parallel)
	t.Run("uidmap", p.uidmap)
	e.run(t, "podman", "rmi", "-f", imageName)
	e.run(t, "podman", "load", "-q", "-i", e.path("docker.tar"))
	checkLines(t, "the image of the docker archive", p.want, p.list(t, imageName))
}

type podmanTest struct {
	*engine
	want []string
	dump string // volume option that brings treedump into a container
}

// list returns the listing of /data within a container made of an image.
func (p *podmanTest) list(t *testing.T, image string, options ...string) []string {
	t.Helper()
	args := append([]string{"podman", "run", "--rm", "-v", p.dump}, options...)
	out := p.run(t, append(args, image, "/treedump", "/", "data")...)
	return strings.Split(strings.TrimSuffix(out, "\n"), "\n")
}

// container is run, exec, diff, cp, commit and rm of one container.
func (p *podmanTest) container(t *testing.T) {
	p.run(t, "podman", "run", "-d", "--name", "c", "-v", p.dump, imageName, "sleep", "1000")
	p.run(t, "podman", "exec", "c", "sh", "-ec", work)
	expect(t, "exec as another user", p.run(t, "podman", "exec", "-u", "guest", "c", "cat", "/data/private/own"), "guest's\n")

	diff := strings.Fields(strings.ReplaceAll(p.run(t, "podman", "diff", "c"), "\n", " "))
	for _, want := range []string{"A /data/made", "D /data/f40", "C /data/top", "D /data/op/after33", "A /data/op/again", "D /data/f37", "A /data/renamed"} {
		if !strings.Contains(strings.Join(diff, " ")+" ", want+" ") {
			t.Errorf("podman diff does not show %q: %v", want, diff)
		}
	}
	for _, l := range diff {
		if strings.Contains(l, ".wh.") {
			t.Errorf("podman diff shows a whiteout: %v", diff)
		}
	}
	if err := os.WriteFile(p.path("in"), []byte(strings.Repeat("copied in\n", 30000)), 0o644); err != nil {
		t.Fatal(err)
	}
	p.run(t, "podman", "cp", p.path("in"), "c:/data/shared/in")
	p.run(t, "podman", "cp", "c:/data/shared/in", p.path("out"))
	if text, err := os.ReadFile(p.path("out")); err != nil || string(text) != strings.Repeat("copied in\n", 30000) {
		t.Errorf("podman cp in and out again: %d bytes, %v", len(text), err)
	}
	live := strings.Split(strings.TrimSuffix(p.run(t, "podman", "exec", "c", "/treedump", "/", "data"), "\n"), "\n")
	p.run(t, "podman", "commit", "-q", "c", "localhost/committed")
	checkLines(t, "the committed image", live, p.list(t, "localhost/committed"))
	p.run(t, "podman", "stop", "-t", "0", "c")
	p.run(t, "podman", "start", "c")
	checkLines(t, "the container, started again,", live,
		strings.Split(strings.TrimSuffix(p.run(t, "podman", "exec", "c", "/treedump", "/", "data"), "\n"), "\n"))
	p.run(t, "podman", "rm", "-f", "-t", "0", "c")
	p.run(t, "podman", "rmi", "-f", "localhost/committed")
	checkLines(t, "the image after its container is gone", p.want, p.list(t, imageName))
}

// work changes an image from within a container.
const work = `
echo made >/data/made
echo more >>/data/top
rm /data/f40
rm -r /data/op; mkdir /data/op; echo again >/data/op/again
mv /data/f37 /data/renamed
mv /data/deep /data/moved
rm -r /data/gone; echo file >/data/gone
chmod 600 /data/f39
chown 1000:1001 /data/private
echo "guest's" >/data/private/own; chown 1000:1001 /data/private/own
ln /data/made /data/made2
ln -s made /data/madelink
`

// commitOpen commits a running container that has a file open for writing.
func (p *podmanTest) commitOpen(t *testing.T) {
	p.run(t, "podman", "run", "-d", "--name", "c", imageName, "sh", "-c",
		"exec 3>/data/dirty; dd if=/dev/zero bs=65536 count=10 >&3 2>/dev/null; echo ready; sleep 1000")
	for deadline := time.Now().Add(patience); !strings.Contains(p.run(t, "podman", "logs", "c"), "ready"); {
		if time.Now().After(deadline) {
			t.Fatal("the container does not start")
		}
	}
	p.run(t, "podman", "commit", "-q", "c", "localhost/dirty")
	expect(t, "size of a dirty file in the commit", p.run(t, "podman", "run", "--rm", "localhost/dirty", "stat", "-c", "%s", "/data/dirty"), "655360\n")
	p.run(t, "podman", "rm", "-f", "-t", "0", "c")
	p.run(t, "podman", "rmi", "-f", "localhost/dirty")
}

// build runs a Dockerfile.
func (p *podmanTest) build(t *testing.T) {
	p.buildWith(t, "podman", "build", "--isolation=chroot", "--network=host")
}

// buildWith builds the same image with podman or buildah. Run twice, the second time from the cache.
func (e *engine) buildWith(t *testing.T, args ...string) {
	t.Helper()
	context := e.path("context")
	if err := os.MkdirAll(context, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(context)
	dockerfile := "FROM " + imageName + `
RUN rm -r /data/shared && mkdir /data/shared && echo one >/data/shared/one
RUN mv /data/deep /data/deeper && echo x >>/data/top
COPY file /data/copied
RUN rm /data/copied /data/f40 && echo z >/data/z && ln /data/z /data/zlink
`
	for name, text := range map[string]string{"Dockerfile": dockerfile, "file": "copied\n"} {
		if err := os.WriteFile(context+"/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	args = append(args, "--layers", "-q", "-t", "localhost/built", context)
	e.run(t, args...)
	e.run(t, args...)
	got := e.run(t, "podman", "run", "--rm", "localhost/built", "sh", "-c",
		"ls /data/shared; cat /data/top; ls /data/deeper/a/b; test ! -e /data/deep; echo $?; ls /data/copied /data/f40 2>&1 | wc -l; stat -c %h /data/zlink")
	expect(t, "the built image", got, "one\n40\nx\nstays\n0\n2\n2\n")
	e.run(t, "podman", "rmi", "-f", "localhost/built")
}

// volume mounts a directory with O, of which the container sees a copy that is thrown away.
func (p *podmanTest) volume(t *testing.T) {
	src := p.path("volume")
	if err := os.Mkdir(src, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(src+"/file", []byte("source\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(src, p.uid, p.uid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(src+"/file", p.uid, p.uid); err != nil {
		t.Fatal(err)
	}
	got := p.run(t, "podman", "run", "--rm", "-v", src+":/mnt:O", imageName, "sh", "-c", "echo more >>/mnt/file; echo n >/mnt/new; cat /mnt/file")
	expect(t, "a changed file of an overlay volume", got, "source\nmore\n")
	text, err := os.ReadFile(src + "/file")
	if err != nil || string(text) != "source\n" {
		t.Errorf("the source of an overlay volume was changed: %q, %v", text, err)
	}
	if names, err := os.ReadDir(src); err != nil || len(names) != 1 {
		t.Errorf("the source of an overlay volume has %v, %v", names, err)
	}
}

func (p *podmanTest) readOnly(t *testing.T) {
	got := p.run(t, "podman", "run", "--rm", "--read-only", imageName, "sh", "-c", "echo x >/data/x 2>/dev/null; echo $?; cat /data/top")
	expect(t, "a read-only container", got, "1\n40\n")
}

// parallel runs containers of one image at the same time.
func (p *podmanTest) parallel(t *testing.T) {
	const n = 6
	errs := make(chan error, n)
	for i := range n {
		go func() {
			out, err := p.try("podman", "run", "--rm", imageName, "sh", "-c", fmt.Sprintf("echo %d >>/data/top; cat /data/top", i))
			if want := fmt.Sprintf("40\n%d\n", i); err == nil && out != want {
				err = fmt.Errorf("container %d printed %q, want %q", i, out, want)
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// keepID runs as the user's own id within the container; files of the image keep their owners.
func (p *podmanTest) keepID(t *testing.T) {
	checkLines(t, "the image with keep-id", capless(p.want), capless(p.list(t, imageName, "--userns=keep-id", "--user", "0:0")))
	got := p.run(t, "podman", "run", "--rm", "--userns=keep-id", imageName, "sh", "-c", "id -u; echo x >/tmp/own; stat -c %u /tmp/own")
	expect(t, "ids with keep-id", got, fmt.Sprintf("%d\n%d\n", userID, userID))
}

// uidmap turns the order of some ids around. As root, podman maps the lower directories besides.
func (p *podmanTest) uidmap(t *testing.T) {
	m := []string{
		"--uidmap", "0:1:2000", "--uidmap", "2000:0:1", "--uidmap", "2001:2001:60000",
		"--gidmap", "0:1:2000", "--gidmap", "2000:0:1", "--gidmap", "2001:2001:63536",
	}
	checkLines(t, "the image with --uidmap", capless(p.want), capless(p.list(t, imageName, m...)))
}

// capless strips file capabilities: they name the root of the user namespace in which the image was unpacked, which is
// not that of a container with other ids.
func capless(lines []string) []string {
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i], _, _ = strings.Cut(l, " security.capability=")
	}
	return out
}
