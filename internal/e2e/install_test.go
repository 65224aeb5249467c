//go:build engines

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// newHost prepares a machine as a new user finds it: engines without a configuration of their storage, and a plyfs in
// /usr/local/bin that nothing uses yet. What is installed there is gone with the test.
func newHost(t *testing.T, uid int) *engine {
	t.Helper()
	for _, dir := range []string{"/usr/local/bin", "/usr/sbin", "/var/lib"} {
		cover(t, dir)
	}
	for _, dir := range []string{"/etc/containers", "/etc/docker", "/etc/containerd"} {
		if _, err := os.Stat(dir); err == nil {
			mountTmpfs(t, dir)
		}
	}
	e := newEngine(t, uid)
	for _, name := range []string{"plyfs", "plyfs-mount", "plyfsd"} {
		text, err := os.ReadFile(filepath.Join(filepath.Dir(testenv.Binary(t)), name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("/usr/local/bin/"+name, text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(e.path(settings + "storage.conf")); err != nil {
		t.Fatal(err)
	}
	e.env = slices.DeleteFunc(e.env, func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return strings.HasPrefix(name, "CONTAINERS_") || name == "PATH" || name == "HOME" || name == "XDG_RUNTIME_DIR"
	})
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	if uid == 0 {
		e.confDefaults(t, "/etc/containers")
		bindOver(t, e.path("graph"), "/var/lib/containers/storage")
		e.env = append(e.env, "HOME="+e.path("home"), "PATH="+path)
		return e
	}
	e.confDefaults(t, e.path("home/.config/containers"))
	mountTmpfs(t, "/home")
	bindOver(t, e.path("home"), userHome)
	run := fmt.Sprintf("/run/user/%d", uid)
	if err := errors.Join(os.Mkdir(filepath.Dir(run), 0o755), os.Mkdir(run, 0o700), os.Chown(run, uid, uid)); err != nil {
		t.Fatal(err)
	}
	e.env = append(e.env, "HOME="+userHome, "XDG_RUNTIME_DIR="+run, "PATH="+userHome+"/.local/bin:"+path)
	return e
}

// userHome is the home directory of the user of newHost.
const userHome = "/home/" + userName

// cover mounts over a directory one that looks the same, into which nothing is written of what the test writes.
func cover(t *testing.T, dir string) {
	t.Helper()
	scratch := testenv.Scratch(t)
	o := testenv.Overlay{Lowers: []string{dir}, Upper: filepath.Join(scratch, "upper"), Work: filepath.Join(scratch, "work")}
	if err := errors.Join(os.Mkdir(o.Upper, 0o755), os.Mkdir(o.Work, 0o755), testenv.MountOverlay(o, dir)); err != nil {
		t.Fatalf("an overlay over %s: %v", dir, err)
	}
	t.Cleanup(func() { testenv.Unmount(t, dir) })
}

func mountTmpfs(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
		t.Fatalf("mount a tmpfs on %s: %v", dir, err)
	}
	t.Cleanup(func() { testenv.Unmount(t, dir) })
}

// bindOver shows the directory dir at target, too, which is made.
func bindOver(t *testing.T, dir, target string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(target, 0o755), unix.Mount(dir, target, "", unix.MS_BIND, "")); err != nil {
		t.Fatalf("bind %s over %s: %v", dir, target, err)
	}
	t.Cleanup(func() { testenv.Unmount(t, target) })
}

// confDefaults moves the engines' configuration to the directory conf, where they look for it by themselves, without
// what follows from where the storage is.
func (e *engine) confDefaults(t *testing.T, conf string) {
	t.Helper()
	for _, name := range []string{"containers.conf", "registries.conf", "policy.json"} {
		text, err := os.ReadFile(e.path(settings + name))
		if err != nil {
			t.Fatal(err)
		}
		text = []byte(strings.NewReplacer(fmt.Sprintf("static_dir = %q\n", e.path("graph/libpod")), "",
			fmt.Sprintf("volume_path = %q\n", e.path("graph/volumes")), "").Replace(string(text)))
		if err := os.WriteFile(filepath.Join(conf, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// plyfs runs the installed plyfs.
func (e *engine) plyfs(t *testing.T, args ...string) string {
	t.Helper()
	return e.run(t, append([]string{"/usr/local/bin/plyfs"}, args...)...)
}

// install installs the drop-in for the engine's user and for podman and buildah.
func (e *engine) install(t *testing.T, flags ...string) string {
	t.Helper()
	args := append([]string{"install", "--as", "fuse-overlayfs", "--storage-conf"}, flags...)
	if e.uid != 0 {
		args = append(args, "--user")
	}
	return e.plyfs(t, args...)
}

// uninstall takes the drop-in back and checks that nothing of it is left.
func (e *engine) uninstall(t *testing.T) {
	t.Helper()
	args := []string{"uninstall"}
	if e.uid != 0 {
		args = append(args, "--user")
	}
	e.plyfs(t, args...)
	for _, p := range []string{e.link(), e.storageConf()} {
		if _, err := os.Lstat(p); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after plyfs uninstall there is still %s (%v)", p, err)
		}
	}
}

// removeAll removes containers and images while the engines are still configured, and checks that no server stays.
func (e *engine) removeAll(t *testing.T) {
	t.Helper()
	for _, args := range e.clean {
		e.run(t, args...)
	}
	e.clean = nil
	deadline := time.Now().Add(patience)
	for len(e.linkServers()) > 0 {
		if time.Now().After(deadline) {
			t.Errorf("servers stay after everything was removed: %q", e.linkServers())
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// linkServers returns the command lines of the servers that were started by the drop-in's name.
func (e *engine) linkServers() []string {
	var found []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		text, err := os.ReadFile(f)
		if args := strings.Split(string(text), "\x00"); err == nil && args[0] == e.link() {
			found = append(found, strings.Join(args, " "))
		}
	}
	return found
}

// link is where plyfs install puts the drop-in.
func (e *engine) link() string {
	if e.uid != 0 {
		return userHome + "/.local/bin/fuse-overlayfs"
	}
	return "/usr/local/bin/fuse-overlayfs"
}

func (e *engine) storageConf() string {
	if e.uid != 0 {
		return userHome + "/.config/containers/storage.conf"
	}
	return "/etc/containers/storage.conf"
}

// asEachInstalled runs a test as root and as a user with plyfs installed by its own command.
func asEachInstalled(t *testing.T, test func(*testing.T, *engine)) {
	for name, uid := range map[string]int{"root": 0, "rootless": userID} {
		t.Run(name, func(t *testing.T) {
			e := newHost(t, uid)
			e.install(t)
			t.Cleanup(func() {
				e.removeAll(t)
				e.uninstall(t)
			})
			test(t, e)
		})
	}
}

// TestInstall installs the drop-in, sees that podman uses it, and takes it back.
func TestInstall(t *testing.T) {
	for name, uid := range map[string]int{"root": 0, "rootless": userID} {
		t.Run(name, func(t *testing.T) {
			e := newHost(t, uid)
			if would := e.install(t, "--dry-run"); !strings.Contains(would, "+++ "+e.storageConf()) {
				t.Errorf("plyfs install --dry-run says:\n%s", would)
			}
			if _, err := os.Lstat(e.link()); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("plyfs install --dry-run made %s (%v)", e.link(), err)
			}
			said := e.install(t)
			for _, want := range []string{e.link() + " -> ", "+++ " + e.storageConf(), "+mount_program = \"" + e.link() + "\""} {
				if !strings.Contains(said, want) {
					t.Errorf("plyfs install does not say %q:\n%s", want, said)
				}
			}
			if again := e.install(t); strings.Contains(again, "+++") || !strings.Contains(again, "already    "+e.link()) {
				t.Errorf("a second time it says:\n%s", again)
			}
			if state := e.install(t, "--show"); strings.Count(state, ": as installed\n") < 2 || !strings.Contains(state, "on PATH is "+e.link()) {
				t.Errorf("plyfs install --show says:\n%s", state)
			}
			e.checkUsed(t)
			e.removeAll(t)
			e.uninstall(t)
		})
	}
}

// checkUsed runs a container and looks who serves its root.
func (e *engine) checkUsed(t *testing.T) {
	t.Helper()
	engineImage(t).writeOCI(t, e.path("oci.tar"), imageName)
	e.run(t, "podman", "load", "-q", "-i", e.path("oci.tar"))
	if info := e.run(t, "podman", "info", "--format", "{{.Store.GraphOptions}}"); !strings.Contains(info, "plyfs: version") {
		t.Errorf("podman info does not name plyfs: %s", info)
	}
	e.run(t, "podman", "run", "-d", "--name", "c", imageName, "sleep", "1000")
	if servers := e.linkServers(); len(servers) != 1 {
		t.Errorf("the container's servers: %q", servers)
	}
	e.run(t, "podman", "rm", "-f", "-t", "0", "c")
	e.run(t, "podman", "rmi", imageName)
}

// TestInstallHelpers mounts by mount(8), which looks for its helpers in /sbin.
func TestInstallHelpers(t *testing.T) {
	e := newHost(t, 0)
	e.clean = nil
	e.plyfs(t, "install", "--as", "fuse-overlayfs")
	dir := testenv.Scratch(t)
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	options := strings.ReplaceAll("lowerdir=D/lower,upperdir=D/upper,workdir=D/work", "D", dir)
	for _, fstype := range []string{"plyfs", "fuse.plyfs", "fuse3.plyfs"} {
		e.run(t, "mount", "-t", fstype, "overlay", filepath.Join(dir, "merged"), "-o", options)
		e.run(t, "umount", filepath.Join(dir, "merged"))
	}
	e.uninstall(t)
	if _, err := exec.LookPath("/sbin/mount.plyfs"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after plyfs uninstall there is still /sbin/mount.plyfs (%v)", err)
	}
}
