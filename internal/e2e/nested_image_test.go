//go:build engines

package e2e

import (
	"archive/tar"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"plyfs/internal/testenv"
)

// enginesImage is the image of docs/nested.md that holds container engines and plyfs.
const enginesImage = "localhost/engines"

// enginesTree is the root file system of enginesImage while it is being collected: members by their path, with the file
// of this machine that a member is a copy of.
type enginesTree struct {
	members map[string]*tar.Header
	source  map[string]string
	text    map[string]string
}

// hostEngines collects an image of this machine's own engines, with the libraries that they need, and a busybox. It has
// what the Containerfile of docs/nested.md gives, without a download.
func hostEngines(t *testing.T) *enginesTree {
	t.Helper()
	e := &enginesTree{members: map[string]*tar.Header{}, source: map[string]string{}, text: map[string]string{}}
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		e.symlink(link, "usr/"+link)
	}
	for _, dir := range []string{"usr/local/bin", "var/lib", "var/log", "run", "proc", "sys", "dev", "images"} {
		e.dir(dir, 0o755, 0)
	}
	e.dir("tmp", 0o1777, 0)
	e.dir("var/tmp", 0o1777, 0)
	e.dir("root", 0o700, 0)
	e.symlink("var/run", "/run")
	for _, name := range []string{
		"dockerd", "containerd", "containerd-shim-runc-v2", "docker", "docker-init", "runc", "podman", "crun", "conmon",
		"fuse-overlayfs", "fusermount3", "newuidmap", "newgidmap", "mount", "umount", "rootlesskit-docker-proxy",
	} {
		e.program(t, name)
	}
	e.copy(t, busybox, "usr/bin/busybox")
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		t.Fatalf("%s --list: %v", busybox, err)
	}
	for _, a := range strings.Fields(string(applets)) {
		if e.members["usr/bin/"+a] == nil {
			e.symlink("usr/bin/"+a, "busybox")
		}
	}
	e.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0)
	e.file("etc/group", "root:x:0:\n", 0)
	e.file("etc/nsswitch.conf", "passwd: files\ngroup: files\n", 0)
	e.file("etc/ld.so.conf", "/lib/"+libraries(t)+"\n", 0)
	return e
}

// libraries is the directory below /lib in which Debian keeps the libraries of this architecture.
func libraries(t *testing.T) string {
	t.Helper()
	names, err := filepath.Glob("/usr/lib/*-linux-gnu*/libc.so.6")
	if err != nil || len(names) == 0 {
		t.Fatalf("no libc below /usr/lib: %v", err)
	}
	return filepath.Base(filepath.Dir(names[0]))
}

func (e *enginesTree) put(h *tar.Header) {
	h.Format = tar.FormatPAX
	e.members[h.Name] = h
	for dir := filepath.Dir(h.Name); dir != "."; dir = filepath.Dir(dir) {
		if e.members[dir] == nil {
			e.members[dir] = &tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, Format: tar.FormatPAX}
		}
	}
}

func (e *enginesTree) dir(name string, mode int64, owner int) {
	e.put(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, Uid: owner, Gid: owner})
}

func (e *enginesTree) symlink(name, target string) {
	e.put(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777})
}

func (e *enginesTree) file(name, text string, owner int) {
	e.put(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Uid: owner, Gid: owner, Size: int64(len(text))})
	e.text[name] = text
}

func (e *enginesTree) copy(t *testing.T, from, name string) {
	t.Helper()
	st, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	e.put(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(st.Mode().Perm()), Size: st.Size()})
	e.source[name] = from
}

// program adds a program that is on PATH, and the libraries that it is linked with.
func (e *enginesTree) program(t *testing.T, name string) {
	t.Helper()
	found, err := exec.LookPath("/usr/bin/" + name)
	if err != nil {
		if found, err = exec.LookPath("/usr/sbin/" + name); err != nil {
			t.Fatalf("%s is needed (packages docker.io, containerd, runc, podman, crun, fuse-overlayfs, fuse3, uidmap, "+
				"rootlesskit): %v", name, err)
		}
	}
	real, err := filepath.EvalSymlinks(found)
	if err != nil {
		t.Fatal(err)
	}
	e.copy(t, real, strings.TrimPrefix(found, "/"))
	for _, lib := range linked(t, real) {
		e.copy(t, lib, strings.TrimPrefix(usr(lib), "/"))
	}
}

// usr is the path of a file below /usr that may be given by the links of a merged file system.
func usr(path string) string {
	if strings.HasPrefix(path, "/lib") {
		return "/usr" + path
	}
	return path
}

var library = regexp.MustCompile(`(?:=> )?(/\S+) \(0x`)

// linked returns the libraries of a program, its loader among them.
func linked(t *testing.T, program string) []string {
	t.Helper()
	f, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Section(".interp") == nil {
		return nil // static
	}
	out, err := exec.Command("ldd", program).CombinedOutput()
	if err != nil {
		t.Fatalf("ldd %s: %v: %s", program, err, out)
	}
	var libs []string
	for _, m := range library.FindAllStringSubmatch(string(out), -1) {
		libs = append(libs, m[1])
	}
	return libs
}

// addPlyfs does what the rest of the Containerfile does: it adds plyfs under test, a user, and the settings of the engines,
// which are files of docs/nested.md.
func (e *enginesTree) addPlyfs(t *testing.T, settings map[string]string) {
	t.Helper()
	e.copy(t, testenv.Binary(t), "usr/bin/plyfs")
	e.copy(t, testenv.MountBinary(t), "usr/bin/plyfs-mount")
	e.symlink("usr/local/bin/fuse-overlayfs", "/usr/bin/plyfs-mount")
	for from, to := range map[string]string{
		"daemon.json": "etc/docker/daemon.json", "containers.conf": "etc/containers/containers.conf",
		"storage.conf": "etc/containers/storage.conf", "storage-user.conf": "home/user/.config/containers/storage.conf",
		"policy.json": "etc/containers/policy.json", "subid": "etc/subuid",
	} {
		e.file(to, settings[from], 0)
	}
	e.file("etc/subgid", settings["subid"], 0)
	e.file("etc/containers/registries.conf", "", 0)
	e.text["etc/passwd"] += "user:x:1000:1000::/home/user:/bin/sh\n"
	e.text["etc/group"] += "user:x:1000:\n"
	for _, name := range []string{"etc/passwd", "etc/group"} {
		e.file(name, e.text[name], 0)
	}
	e.dir("home/user", 0o755, 1000)
	e.dir("run/user/1000", 0o700, 1000)
	for name, h := range e.members {
		if strings.HasPrefix(name, "home/user/") {
			h.Uid, h.Gid = 1000, 1000
		}
	}
	// As the Containerfile says with setcap: cap_setuid and cap_setgid, permitted and effective.
	for name, bit := range map[string]byte{"newuidmap": 1 << 7, "newgidmap": 1 << 6} {
		h := e.members["usr/bin/"+name]
		h.Mode = 0o755
		attr := "\x01\x00\x00\x02" + string([]byte{bit}) + strings.Repeat("\x00", 15)
		h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": attr}
	}
}

// write writes the tree as a layer, in the order of names, so that directories stand before what is in them.
func (e *enginesTree) write(w io.Writer) error {
	tw := tar.NewWriter(w)
	var names []string
	for name := range e.members {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := tw.WriteHeader(e.members[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := e.content(tw, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return tw.Close()
}

func (e *enginesTree) content(w io.Writer, name string) error {
	if from := e.source[name]; from != "" {
		f, err := os.Open(from)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	}
	_, err := io.WriteString(w, e.text[name])
	return err
}
