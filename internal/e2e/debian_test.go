//go:build engines && long

package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"plyfs/internal/testenv"
)

// TestStoreDebian takes a real Debian in, works in it with its own tools, and has podman run the result.
func TestStoreDebian(t *testing.T) {
	e := newEngine(t, 0)
	// In memory, where the many syncs of dpkg cost nothing.
	root := filepath.Join(testenv.Scratch(t), "debian")
	bootstrap(t, root)
	im := e.path("debian.tar")
	writeDebian(t, root, im)
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	for _, driver := range []string{"plyfs", "overlay2"} {
		t.Run(driver, func(t *testing.T) {
			s := &storeTest{engine: e, bin: testenv.Binary(t), driver: driver}
			s.plyfs(t, "image", "import", im)
			s.plyfs(t, "container", "create", "localhost/debian", "c")
			target := s.plyfs(t, "container", "mount", "c")
			inChroot(t, target, "apt-get -q update && apt-get -qy install --no-install-recommends hello && apt-get -q clean && hello")
			s.plyfs(t, "container", "umount", "c")
			if changes := s.plyfs(t, "container", "changes", "c"); !strings.Contains(changes, "A /usr/bin/hello\n") || strings.Contains(changes, "/proc/") {
				t.Errorf("changes:\n%s", tail(changes, 20))
			}
			s.plyfs(t, "container", "commit", "c", storeName, "--change", `CMD ["/usr/bin/hello"]`, "-m", "hello")
			s.plyfs(t, "image", "export", "-o", e.path("out.tar"), storeName)
			e.run(t, "podman", "load", "-q", "-i", e.path("out.tar"))
			expect(t, "hello in podman", e.run(t, "podman", "run", "--rm", storeName), "Hello, world!\n")
			expect(t, "dpkg --verify in podman", e.run(t, "podman", "run", "--rm", storeName, "dpkg", "--verify", "hello", "libc6"), "")
			e.run(t, "podman", "rmi", storeName)
			s.plyfs(t, "container", "rm", "c")
			s.remove(t)
		})
	}
}

// bootstrap makes a Debian of the release and from the mirror that this machine's apt uses.
func bootstrap(t *testing.T, root string) {
	t.Helper()
	out, err := newCommand("apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Created-By: Packages").Output()
	if err != nil {
		t.Fatalf("apt-get indextargets: %v", err)
	}
	// The first release that is not an addition to another, such as bookworm-updates.
	m := regexp.MustCompile(`(?m)^(\S+) ([^ -]+) main$`).FindStringSubmatch(string(out))
	if m == nil {
		t.Fatalf("no Debian mirror in apt's configuration:\n%s", out)
	}
	mirror := m[1]
	if list, ok := strings.CutPrefix(mirror, "mirror+file:"); ok {
		text, err := os.ReadFile(list)
		if err != nil {
			t.Fatal(err)
		}
		mirror = regexp.MustCompile(`(?m)^https?://\S+`).FindString(string(text))
	}
	// What it mounts is gone with it, however it ends.
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child",
		"debootstrap", "--variant=minbase", m[2], root, mirror)
	cmd.Env = append(os.Environ(), proxies(t)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("debootstrap (package debootstrap): %v\n%s", err, tail(string(out), 20))
	}
	conf, err := newCommand("apt-config", "dump").Output()
	if err != nil {
		t.Fatal(err)
	}
	// What apt needs to reach the mirror as this machine does.
	keep := regexp.MustCompile(`(?m)^Acquire::(https?::(Proxy|Verify)|Check-|Retries|ForceIPv|Max-ValidTime).*\n`).FindAllString(string(conf), -1)
	for name, text := range map[string]string{
		"etc/apt/apt.conf.d/90host": strings.Join(keep, ""), "etc/resolv.conf": readHost(t, "/etc/resolv.conf"), "etc/hosts": readHost(t, "/etc/hosts"),
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func readHost(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// proxies are the ones that apt is configured with, for programs that read the environment.
func proxies(t *testing.T) []string {
	t.Helper()
	out, err := newCommand("apt-config", "shell", "http_proxy", "Acquire::http::Proxy", "https_proxy", "Acquire::https::Proxy").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(strings.ReplaceAll(string(out), "'", ""))
}

// writeDebian writes a tree as the only layer of an image in an OCI archive.
func writeDebian(t *testing.T, root, path string) {
	t.Helper()
	layer, err := newCommand("tar", "--numeric-owner", "--xattrs", "-C", root, "--sort=name", "-c", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	c := config{Architecture: runtime.GOARCH, OS: "linux", Created: time.Unix(epoch, 0).UTC()}
	c.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	c.Config.Cmd = []string{"bash"}
	c.RootFS.Type, c.RootFS.DiffIDs = "layers", []string{"sha256:" + digest(layer)}
	writeLayout(t, path, "localhost/debian:latest", c, layer)
}

// writeLayout writes an OCI archive of an image of one layer, which may be large.
func writeLayout(t *testing.T, path, name string, c config, layer []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	put := func(name string, data []byte) {
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))})
		if err == nil {
			_, err = io.Copy(w, bytes.NewReader(data))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	blob := func(mediaType string, data []byte) descriptor {
		put("blobs/sha256/"+digest(data), data)
		return descriptor{MediaType: mediaType, Digest: "sha256:" + digest(data), Size: len(data)}
	}
	manifest := blob("application/vnd.oci.image.manifest.v1+json", mustJSON(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": blob("application/vnd.oci.image.config.v1+json", mustJSON(c)),
		"layers": []descriptor{blob("application/vnd.oci.image.layer.v1.tar", layer)},
	}))
	manifest.Annotations = map[string]string{"org.opencontainers.image.ref.name": name}
	put("index.json", mustJSON(map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}}))
	put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// inChroot runs a script in a root file system, in namespaces of its own: what is mounted for it is below the container's
// root, and no part of it.
func inChroot(t *testing.T, root, script string) {
	t.Helper()
	const prepare = `
		mount -t proc none "$1/proc"
		mount -t tmpfs -o mode=755,size=1m dev "$1/dev"
		for d in null zero full random urandom tty; do touch "$1/dev/$d"; mount --bind "/dev/$d" "$1/dev/$d"; done
		exec chroot "$1" /usr/bin/env -i HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
			PATH=/usr/sbin:/usr/bin:/sbin:/bin bash -ceu "$2"`
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "private", "--pid", "--ipc", "--uts", "--fork", "--kill-child",
		"sh", "-ceu", prepare, "sh", root, script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("in the container: %v\n%s", err, tail(string(out), 30))
	}
}
