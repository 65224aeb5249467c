package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// layerTree makes directories for bad mounts and returns where they are.
func layerTree(t *testing.T) string {
	t.Helper()
	dir := testenv.Scratch(t)
	leavesNothing(t, dir)
	mkdirs(t, dir, "lower/in/work", "lower/in/upper", "lower2", "upper/in", "work/in", "merged", "left/upper", "left/work/work/incompat/volatile",
		"later/upper", "later/work/work/incompat/later")
	write(t, "", dir, "file")
	return dir
}

func TestRefuses(t *testing.T) {
	dir := layerTree(t)
	abs := func(name string) string { return filepath.Join(dir, name) }
	many := strings.TrimSuffix(strings.Repeat("lower:", 501), ":")
	tests := []struct {
		name, opts, target string
		code               int
		want               string
	}{
		{"no lower given", "upperdir=upper,workdir=work", "merged", exitUsage, "no lowerdir given; add -o lowerdir=DIR[:DIR]..., the topmost first"},
		{"too many lowers", "lowerdir=" + many, "merged", exitUsage, "501 lower directories given, the limit is 500; merge some of them"},
		{"lower missing", "lowerdir=lower:none", "merged", exitMount, "lowerdir=none: no such file or directory; create the directory, or correct the path"},
		{"plugin", "lowerdir=//p/d/x", "merged", exitMount, "lowerdir=//p/d/x: no such file or directory; plugins for lower layers are not supported, give a directory"},
		{"lower a file", "lowerdir=file", "merged", exitMount, "lowerdir=file: not a directory; give a directory"},
		{"upper missing", "lowerdir=lower,upperdir=none,workdir=work", "merged", exitMount, "upperdir=none: no such file or directory; create the directory, or correct the path"},
		{"upper a file", "lowerdir=lower,upperdir=file,workdir=work", "merged", exitMount, "upperdir=file: not a directory; give a directory"},
		{"work missing", "lowerdir=lower,upperdir=upper,workdir=none", "merged", exitMount, "workdir=none: no such file or directory; create the directory, or correct the path"},
		{"work a file", "lowerdir=lower,upperdir=upper,workdir=file", "merged", exitMount, "workdir=file: not a directory; give a directory"},
		{"no work given", "lowerdir=lower,upperdir=upper", "merged", exitUsage, "upperdir=upper has no workdir; add workdir=DIR, an empty directory on the same file system, or ro"},
		{"upper is work", "lowerdir=lower,upperdir=upper,workdir=upper", "merged", exitMount, "upperdir=" + abs("upper") + " and workdir=" + abs("upper") + " are the same directory; give each layer once, and a workdir of its own"},
		{"upper is a lower", "lowerdir=upper,upperdir=upper,workdir=work", "merged", exitMount, "upperdir=" + abs("upper") + " and lowerdir=" + abs("upper") + " are the same directory; give each layer once, and a workdir of its own"},
		{"a lower twice", "lowerdir=lower:lower2:./lower", "merged", exitMount, "lowerdir=" + abs("lower") + " and lowerdir=" + abs("lower") + " are the same directory; give each layer once, and a workdir of its own"},
		{"work inside upper", "lowerdir=lower,upperdir=upper,workdir=upper/in", "merged", exitMount, "workdir=" + abs("upper/in") + " is inside upperdir=" + abs("upper") + "; put it next to upperdir"},
		{"upper inside work", "lowerdir=lower,upperdir=work/in,workdir=work", "merged", exitMount, "upperdir=" + abs("work/in") + " is inside workdir=" + abs("work") + "; put it next to workdir"},
		{"work inside a lower", "lowerdir=lower2:lower,upperdir=upper,workdir=lower/in/work", "merged", exitMount, "workdir=" + abs("lower/in/work") + " is inside lowerdir=" + abs("lower") + "; put it outside of all lower directories"},
		{"lower inside a lower", "lowerdir=lower:lower/in", "merged", exitMount, "lowerdir=" + abs("lower/in") + " is inside lowerdir=" + abs("lower") + "; layers must not overlap"},
		{"lower inside upper", "lowerdir=upper/in,upperdir=upper,workdir=work", "merged", exitMount, "lowerdir=" + abs("upper/in") + " is inside upperdir=" + abs("upper") + "; layers must not overlap"},
		{"lower inside work", "lowerdir=work/in,upperdir=upper,workdir=work", "merged", exitMount, "lowerdir=" + abs("work/in") + " is inside workdir=" + abs("work") + "; layers must not overlap"},
		{
			"volatile left", "lowerdir=lower,upperdir=left/upper,workdir=left/work", "merged", exitMount,
			"upperdir=" + abs("left/upper") + " was last used by a volatile mount and may be incomplete; start with an empty one, or, if the system did not crash since, remove " + abs("left/work") + "/work/incompat/volatile",
		},
		{
			"unknown feature", "lowerdir=lower,upperdir=later/upper,workdir=later/work", "merged", exitMount,
			"upperdir=" + abs("later/upper") + " has the mark of a feature that plyfs does not know; mount it with what wrote it, or start with an empty one; the mark is " + abs("later/work") + "/work/incompat/later",
		},
		{"no mount point", "lowerdir=lower", "none", exitMount, "mount point none does not exist; create the directory, or correct the path"},
		{"mount point a file", "lowerdir=lower", "file", exitMount, "mount point file is not a directory; give a directory"},
		{"bad value", "lowerdir=lower,metacopy=x", "merged", exitUsage, "option metacopy=x: is not known; give one of on, off"},
		{"bad log", "lowerdir=lower,log=none/log", "merged", exitUsage, "option log=none/log: no such file or directory; give a file that can be written"},
		{"no descriptor", "lowerdir=lower", "/dev/fd/77", exitUsage, "mount point /dev/fd/77: bad file descriptor; pass a /dev/fuse descriptor that is mounted already"},
		{"wrong descriptor", "lowerdir=lower", "/dev/fd/0", exitUsage, "mount point /dev/fd/0: is not a /dev/fuse descriptor; pass one that is mounted already"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, p := range []struct{ name, prefix string }{
				{"fuse-overlayfs", "fuse-overlayfs"}, {"plyfs", "plyfs"}, {"mount.fuse3.plyfs", "mount.fuse3.plyfs"},
			} {
				args := []string{"-o", tt.opts, tt.target}
				switch p.name {
				case "plyfs":
					args = append([]string{"mount"}, args...)
				case "mount.fuse3.plyfs":
					args = []string{"spec", tt.target, "-o", tt.opts}
				}
				got := runIn(t, dir, p.name, args...)
				want := result{stderr: p.prefix + ": " + tt.want + "\n", code: tt.code}
				if got != want {
					t.Errorf("%s:\ngot  %+v\nwant %+v", p.name, got, want)
				}
			}
		})
	}
}

func TestRefusesDifferentFileSystems(t *testing.T) {
	dir := layerTree(t)
	other := testenv.Scratch(t)
	if err := unix.Mount("tmpfs", other, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { testenv.Unmount(t, other) })
	got := runIn(t, dir, "fuse-overlayfs", "-o", "lowerdir=lower,upperdir=upper,workdir="+other, "merged")
	want := fmt.Sprintf("fuse-overlayfs: upperdir=%s/upper and workdir=%s are on different file systems; put workdir next to upperdir\n", dir, other)
	if got.stderr != want || got.code != exitMount {
		t.Errorf("%+v", got)
	}
}

// TestRefusesUnionUpper: another union may keep both forms of whiteouts to itself, as fuse-overlayfs does.
func TestRefusesUnionUpper(t *testing.T) {
	dir := unionTree(t)
	mkdirs(t, dir, "outer", "outer/lower", "outer/upper", "outer/work", "outer/merged")
	outer := command(t, dir, "/usr/bin/fuse-overlayfs", "-o", "lowerdir=outer/lower,upperdir=outer/upper,workdir=outer/work", "outer/merged")
	if got := finish(t, outer); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	t.Cleanup(func() { testenv.Unmount(t, dir+"/outer/merged") })
	mkdirs(t, dir, "outer/merged/upper", "outer/merged/work")
	opts := "lowerdir=lower,upperdir=outer/merged/upper,workdir=outer/merged/work"
	for _, more := range []string{"", ",whiteout=aufs", ",whiteout=kernel"} {
		got := runIn(t, dir, "plyfs", "mount", "-o", opts+more, "merged")
		want := result{code: exitMount, stderr: "plyfs: upperdir=" + dir + "/outer/merged/upper is on a file system that takes no whiteouts, " +
			"as fuse-overlayfs: nothing of the lower layers could be removed or renamed; put upperdir and workdir on another file system, or add ro\n"}
		if got != want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", more, got, want)
		}
	}
	mustMount(t, dir, "plyfs", "mount", "-o", opts+",ro", "merged")
	mustMount(t, dir, "plyfs", "umount", "merged")
}

// inNamespace wraps a command so that a shell script runs before it in a mount namespace of its own.
func inNamespace(script string, args ...string) []string {
	return append([]string{"-m", "--propagation", "private", "sh", "-c", script + ` && exec "$@"`, "sh"}, args...)
}

func TestRefusesWithoutFUSE(t *testing.T) {
	dir := layerTree(t)
	fo := program(t, "fuse-overlayfs")
	filesystems := filepath.Join(dir, "filesystems")
	const dev = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3"
	write(t, "nodev\tproc\n\text4\n", filesystems)
	tests := []struct {
		name, script string
		code         int
		want         string
	}{
		{
			"no device", dev, exitSystem,
			"no /dev/fuse here; in a container pass the device in (--device /dev/fuse), else make it (mknod /dev/fuse c 10 229)",
		},
		{
			"not in the kernel", dev + " && mount --bind " + filesystems + " /proc/filesystems", exitSystem,
			"no /dev/fuse, and FUSE is not in the kernel; load the module (modprobe fuse)",
		},
		{
			"no such driver", dev + " && mknod /dev/fuse c 10 3", exitSystem,
			"FUSE is not in the kernel (/dev/fuse: no such device); load the module (modprobe fuse)",
		},
		{
			"not allowed", dev + " && mkdir /dev/x && mount -t tmpfs -o nodev none /dev/x && mknod /dev/x/fuse c 10 229 && " +
				"touch /dev/fuse && mount --bind /dev/x/fuse /dev/fuse", exitUsage,
			"/dev/fuse: permission denied; the device has to be readable and writable (mode 0666), and allowed to the container",
		},
	}
	const device = dev + " && mknod -m 600 /dev/fuse c 10 229"
	for _, tt := range []struct {
		name, script string
		code         int
		want         string
	}{
		{
			"no device", dev + " && touch /dev/fuse", exitSystem,
			"/dev/fuse is not a device; remove it, and make it (mknod /dev/fuse c 10 229)",
		},
		{
			"for root alone", device, exitUsage,
			"/dev/fuse: permission denied; the device has to be readable and writable (mode 0666), and allowed to the container",
		},
		{
			"no set-user-ID", device + " && chmod 666 /dev/fuse && chmod 777 merged && set -- setpriv --no-new-privs \"$@\"", exitUsage,
			"fuse mount on " + dir + "/merged: /usr/bin/fusermount3: mount failed: Operation not permitted; it needs to be set-user-ID root, " +
				"where that has effect (no no_new_privs); else mount in a user namespace (unshare -Urm)",
		},
	} {
		t.Run("plain user, "+tt.name, func(t *testing.T) {
			as := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}
			got := runIn(t, dir, "/usr/bin/unshare", inNamespace(tt.script, append(as, fo, "-o", "lowerdir=lower", "merged")...)...)
			if want := (result{stderr: "fuse-overlayfs: " + tt.want + "\n", code: tt.code}); got != want {
				t.Errorf("\ngot  %+v\nwant %+v", got, want)
			}
		})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := runIn(t, dir, "/usr/bin/unshare", inNamespace(tt.script, fo, "-o", "lowerdir=lower", "merged")...)
			if want := (result{stderr: "fuse-overlayfs: " + tt.want + "\n", code: tt.code}); got != want {
				t.Errorf("\ngot  %+v\nwant %+v", got, want)
			}
		})
	}
}

// allowsOther reports whether fuse.conf lets users give allow_other.
func allowsOther(t *testing.T) bool {
	t.Helper()
	text, err := os.ReadFile("/etc/fuse.conf")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return slices.Contains(strings.Split(string(text), "\n"), "user_allow_other")
}

func TestRefusesPlainUser(t *testing.T) {
	dir := layerTree(t)
	mkdirs(t, dir, "secret/lower")
	if err := os.Chmod(filepath.Join(dir, "secret"), 0o700); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, opts string
		code       int
		want       string
	}{
		{"lower", "lowerdir=secret/lower", exitUsage, "lowerdir=secret/lower: permission denied; the mounting user needs search permission on the directory and all above it"},
		{"upper", "lowerdir=lower,upperdir=upper,workdir=work", exitUsage, "upperdir=" + dir + "/upper: permission denied; the mounting user needs to write there"},
		{"allow_other", "lowerdir=lower,allow_other", exitUsage, "option allow_other: only root may give it; add a line user_allow_other to /etc/fuse.conf, or leave the option out"},
	}
	for _, tt := range tests {
		if tt.name == "allow_other" && allowsOther(t) {
			continue
		}
		cmd := command(t, dir, "fuse-overlayfs", "-o", tt.opts, "merged")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		got := finish(t, cmd)
		if want := (result{stderr: "fuse-overlayfs: " + tt.want + "\n", code: tt.code}); got != want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", tt.name, got, want)
		}
	}
}

// TestVolumeAroundItsOwnStorage holds the one overlap that the fuse-overlayfs personality tolerates; see checkWork.
func TestVolumeAroundItsOwnStorage(t *testing.T) {
	dir := layerTree(t)
	opts := "lowerdir=lower,upperdir=lower/in/upper,workdir=lower/in/work"
	got := runIn(t, dir, "plyfs", "mount", "-o", opts, "merged")
	if got.code != exitMount || !strings.Contains(got.stderr, "is inside lowerdir=") {
		t.Errorf("plyfs mount: %+v", got)
	}
	got = runIn(t, dir, "mount.plyfs", "spec", "merged", "-f", "-o", opts)
	if got.code != exitMount {
		t.Errorf("mount.plyfs: %+v", got)
	}
}

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	tests := []struct {
		name, args string
		code       int
		stdout     string // a part
		stderr     string // all
	}{
		{"fuse-overlayfs", "--version", 0, "fuse-overlayfs: version 1.17\nplyfs: version ", ""},
		{"fuse-overlayfs", "-V", 0, "fuse-overlayfs: version 1.17\n", ""},
		{"fuse-overlayfs", "--help", 0, "usage: fuse-overlayfs [-f]", ""},
		{"fuse-overlayfs", "-h", 0, "lowerdir=DIR", ""},
		{"fuse-overlayfs", "", 1, "", "fuse-overlayfs: no mountpoint specified; usage: fuse-overlayfs [-f] [-d] [-o OPTION[,OPTION]...]... MOUNTPOINT\n"},
		{"mount.plyfs", "--version", 0, "plyfs: version ", ""},
		{"mount.fuse3.plyfs", "--help", 0, "usage: mount.fuse3.plyfs SPEC MOUNTPOINT", ""},
		{"plyfs", "--version", 0, "plyfs: version ", ""},
		{"plyfs", "-V", 0, "plyfs: version ", ""},
		{"plyfs", "version", 0, "plyfs: version ", ""},
		{"plyfs", "version --json", 0, `"version": "`, ""},
		{"plyfs", "--help", 0, "umount", ""},
		{"plyfs", "", 0, "umount", ""},
		{"plyfs", "mount --help", 0, "usage: plyfs mount [-f]", ""},
		{"plyfs", "mount -V", 0, "plyfs: version", ""},
		{"plyfs", "umount --help", 0, "--lazy", ""},
		{"plyfs", "frobnicate", 1, "", "plyfs: unknown command frobnicate; see plyfs --help\n"},
		{"plyfs", "umont x", 1, "", "plyfs: unknown command umont (did you mean umount?); see plyfs --help\n"},
		{"plyfs", "image pul x", 16, "", "plyfs: unknown command image pul (did you mean pull?); see plyfs image --help\n"},
		{"plyfs", "index lst", 16, "", "plyfs: unknown command index lst (did you mean ls?); see plyfs index --help\n"},
		{"plyfs", "--frobnicate", 1, "", "plyfs: unknown flag --frobnicate; see plyfs --help\n"},
		{"plyfs", "--verson", 1, "", "plyfs: unknown flag --verson (did you mean --version?); see plyfs --help\n"},
		{"plyfs", "umount --lzy x", 1, "", "plyfs: unknown flag --lzy (did you mean --lazy?); usage: plyfs umount [--lazy] MOUNTPOINT\n"},
		{"plyfs", "image ls --jsn", 16, "", "plyfs: unknown flag --jsn (did you mean --json?); usage: plyfs image ls [--json]\n"},
		{"plyfs", "image rm x --froce=1", 16, "", "plyfs: unknown flag --froce (did you mean --force?); usage: plyfs image rm [--force] [--json] IMAGE...\n"},
		{"plyfs", "mount --frobnicate x", 1, "", "plyfs: unknown flag --frobnicate; see plyfs mount --help\n"},
		{"plyfs", "mount -o lowrdir=a x", 1, "", "plyfs: unknown option lowrdir=a; did you mean lowerdir?\n"},
		{"plyfs", "umount", 1, "", "plyfs: one mount point is needed; usage: plyfs umount [--lazy] MOUNTPOINT\n"},
		{"plyfs", "umount .", 1, "", "plyfs: . is not a mount point\n"},
		{"plyfs", "umount /proc", 1, "", "plyfs: /proc is a mount of type proc, not one of plyfs\n"},
		{"mount.plyfs", "x /proc -o remount,ro", 1, "", "mount.plyfs: /proc is a mount of type proc, not one of plyfs\n"},
		{"mount.plyfs", "x . -N /none -o lowerdir=/", 1, "", "mount.plyfs: mount namespace /none: no such file or directory\n"},
		{"plyfs", "overlay none -o lowerdir=none", exitMount, "", "plyfs: mount point none does not exist; create the directory, or correct the path\n"},
	}
	for _, tt := range tests {
		got := runIn(t, dir, tt.name, strings.Fields(tt.args)...)
		if got.code != tt.code || !strings.Contains(got.stdout, tt.stdout) || got.stderr != tt.stderr || (tt.stdout == "" && got.stdout != "") {
			t.Errorf("%s %s:\ngot  %+v\nwant %+v", tt.name, tt.args, got, tt)
		}
	}
}
