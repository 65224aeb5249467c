//go:build engines && long

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"plyfs/internal/testenv"
)

// TestPodmanBuildDebian builds an image of a real Debian in which packages are installed, a directory of the base image is
// removed and another renamed.
func TestPodmanBuildDebian(t *testing.T) {
	archive := debianTar(t)
	asEachInstalled(t, func(t *testing.T, e *engine) { e.buildDebian(t, archive) })
}

// debianTar returns a tar file of a Debian of this machine's release. It is made once, and kept in the cache directory.
func debianTar(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cache, "plyfs-engines", "debian.tar")
	if _, err := os.Stat(path); err == nil {
		return path
	} else if !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	// In memory, where the many syncs of dpkg cost nothing.
	root := filepath.Join(testenv.Scratch(t), "debian")
	bootstrap(t, root)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	made := path + ".new"
	defer os.Remove(made) // there only if something failed
	if out, err := newCommand("tar", "--numeric-owner", "--xattrs", "-C", root, "-cf", made, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	if err := errors.Join(os.Rename(made, path), os.RemoveAll(root)); err != nil {
		t.Fatal(err)
	}
	return path
}

// containerfile is what is built. Each step meets what those before it left in lower layers.
const containerfile = `FROM localhost/debian
COPY *.deb /debs/
RUN dpkg -i /debs/one.deb && dpkg -i /debs/two.deb && rm -r /debs
RUN rm -r /usr/share/doc && mv /usr/share/common-licenses /usr/share/licenses
RUN dpkg --purge one && dpkg --verify two && test ! -e /usr/lib/one && test -e /usr/lib/two/file199
`

func (e *engine) buildDebian(t *testing.T, archive string) {
	t.Helper()
	// The user may not look into the cache directory.
	base := e.path("debian.tar")
	if out, err := newCommand("cp", archive, base).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	e.run(t, "podman", "import", "-q", "-c", "CMD sh", base, "localhost/debian")
	context := e.path("context")
	makeDirectory(t, context, e.uid)
	for _, name := range []string{"one", "two"} {
		makePackage(t, context, name)
	}
	if err := os.WriteFile(filepath.Join(context, "Containerfile"), []byte(containerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	e.run(t, "podman", "build", "--isolation=chroot", "--network=host", "--layers", "-q", "-t", "localhost/built", context)
	got := e.run(t, "podman", "run", "--rm", "localhost/built", "sh", "-c",
		"ls -d /usr/share/doc /debs /usr/share/common-licenses /usr/lib/one 2>&1 | grep -c 'No such'; ls /usr/share/licenses/GPL-3; "+
			"ls /usr/lib/two | wc -l; dpkg-query -W -f '${Status}' two; dpkg --audit")
	expect(t, "the built image", got, "4\n/usr/share/licenses/GPL-3\n200\ninstall ok installed")
}

// makePackage writes the Debian package DIR/NAME.deb, of 200 files and a script.
func makePackage(t *testing.T, dir, name string) {
	t.Helper()
	tree := filepath.Join(testenv.Scratch(t), name)
	files := map[string]string{
		"DEBIAN/control": "Package: " + name + "\nVersion: 1\nArchitecture: all\nMaintainer: A Test <test@localhost>\n" +
			"Description: files of a test\n",
		"DEBIAN/postinst":                      "#!/bin/sh\nset -e\nln -sf /usr/lib/" + name + " /var/lib/" + name + "\n",
		"DEBIAN/postrm":                        "#!/bin/sh\nset -e\nrm -f /var/lib/" + name + "\n",
		"usr/share/doc/" + name + "/copyright": "none\n",
	}
	for i := range 200 {
		files[fmt.Sprintf("usr/lib/%s/file%d", name, i)] = strings.Repeat(name, i)
	}
	for path, text := range files {
		p := filepath.Join(tree, path)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := newCommand("dpkg-deb", "--root-owner-group", "-b", tree, filepath.Join(dir, name+".deb")).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v\n%s", err, out)
	}
}
