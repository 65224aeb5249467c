package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"plyfs/drivers"
	"plyfs/fs/server"
)

// installer is for whom plyfs install works, and where things are for them.
type installer struct {
	// root is put before the paths of the machine; "" but in tests.
	root string
	// user says that only the files of the user uid are changed, whose home is given.
	user bool
	uid  int
	home string
	// program is what is put in place of others: plyfs-mount beside self, which is this program, or that itself.
	program, self string
	// bindir is where links to it go.
	bindir string
	getenv func(string) string
}

// newInstaller finds out for whom to work. It refuses what would be done for somebody else than meant.
func newInstaller(user bool, bindir string) (*installer, error) {
	in := &installer{user: user, uid: os.Geteuid(), getenv: os.Getenv, bindir: bindir}
	switch {
	case in.uid != 0 && !user:
		return nil, faultf(storeUsage, "only root can install for everybody: run it as root, or add --user to install for "+
			"yourself alone")
	case in.uid == 0 && user && in.getenv("SUDO_UID") != "":
		return nil, faultf(storeUsage, "--user would install for root: run it without sudo")
	case in.uid == 0 && user:
		return nil, faultf(storeUsage, "--user is for plain users: root installs for everybody, without it")
	case in.uid == 0 && drivers.UserNamespace().Nested && in.getenv("_CONTAINERS_ROOTLESS_UID") != "":
		return nil, faultf(storeUsage, "this is the user namespace of rootless podman: run it outside of it, with --user")
	}
	var err error
	if in.home, err = os.UserHomeDir(); err != nil && user {
		return nil, faultf(storeUsage, "no home directory: set HOME")
	}
	if user && !filepath.IsAbs(in.home) {
		return nil, faultf(storeUsage, "HOME=%s is not an absolute path", in.home)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, faultf(storeFailed, "find this program's file: %v", err)
	}
	if in.self, err = trustedPath(self, in.uid); err != nil {
		return nil, fmt.Errorf("this program: %w; as root, make install puts it where it is safe", err)
	}
	in.program = in.self
	if mount := filepath.Join(filepath.Dir(in.self), server.NameMount); regular(mount) {
		if in.program, err = trustedPath(mount, in.uid); err != nil {
			return nil, fmt.Errorf("the program beside this one: %w", err)
		}
	}
	switch {
	case in.bindir == "" && user:
		in.bindir = filepath.Join(in.home, ".local", "bin")
	case in.bindir == "":
		in.bindir = in.path("/usr/local/bin")
	case !filepath.IsAbs(in.bindir):
		return nil, faultf(storeUsage, "--bindir %s is not an absolute path", in.bindir)
	}
	return in, nil
}

// path is a path of the machine.
func (in *installer) path(p string) string { return filepath.Join(in.root, p) }

// xdg is a directory of the user as the XDG base directory specification has it.
func (in *installer) xdg(variable, otherwise string) string {
	if dir := in.getenv(variable); filepath.IsAbs(dir) {
		return dir
	}
	return filepath.Join(in.home, otherwise)
}

// runtimeDir is the user's directory for sockets and the like.
func (in *installer) runtimeDir() (string, error) {
	if dir := in.getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return dir, nil
	}
	dir := in.path(fmt.Sprintf("/run/user/%d", in.uid))
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return "", faultf(storeUsage, "XDG_RUNTIME_DIR is not set, and there is no %s: log in as this user, or set it", dir)
	}
	return dir, nil
}

// journal is the record of what was installed.
func (in *installer) journal() journal {
	if in.user {
		return journal{path: filepath.Join(in.xdg("XDG_STATE_HOME", ".local/state"), server.NamePlyfs, "install.json")}
	}
	return journal{path: in.path("/var/lib/plyfs/install.json")}
}

// link returns the link for the program name in dir, none if it is there already.
func (in *installer) link(r installRecord, dir, name string) (*installChange, error) {
	path := filepath.Join(dir, name)
	resolved, err := trustedPath(dir, in.uid)
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(filepath.Join(resolved, name))
	if errors.Is(err, fs.ErrNotExist) {
		return &installChange{Kind: changeLink, Path: path, Target: in.linkTarget(dir, name)}, nil
	}
	if err != nil {
		return nil, err
	}
	switch {
	case sameFile(path, in.program), sameFile(path, in.self):
		return nil, nil
	case r.owns(path):
		return nil, fmt.Errorf("%s leads to another plyfs, or to one that is gone, and was %w: "+
			"plyfs uninstall first", path, errInstallConflict)
	}
	return nil, fmt.Errorf("%s is there already, %s, and was %w: move it away, or give another --bindir that comes first on PATH",
		path, describeFile(info, path), errInstallConflict)
}

func describeFile(info fs.FileInfo, path string) string {
	if info.Mode()&fs.ModeSymlink == 0 {
		return "a file"
	}
	target, err := os.Readlink(path)
	if err != nil {
		return "a link"
	}
	return "a link to " + target
}

// linkTarget is what the link dir/name holds: the name alone if plyfs is in the same directory, so that a newer plyfs that is
// installed there is found.
func (in *installer) linkTarget(dir, name string) string {
	if own := filepath.Base(in.program); name != own && sameFile(filepath.Join(dir, own), in.program) {
		return own
	}
	return in.program
}

// sameFile says whether both paths lead to one file.
func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

func regular(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// lookPath is the first program of a name on PATH, "" if there is none.
func (in *installer) lookPath(name string) string {
	for _, dir := range filepath.SplitList(in.getenv("PATH")) {
		p := filepath.Join(dir, name)
		if info, err := os.Stat(p); filepath.IsAbs(dir) && err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return p
		}
	}
	return ""
}

// onPath says whether dir is one of PATH's.
func (in *installer) onPath(dir string) bool {
	a, err := os.Stat(dir)
	for _, p := range filepath.SplitList(in.getenv("PATH")) {
		if filepath.Clean(p) == filepath.Clean(dir) {
			return true
		}
		if b, err2 := os.Stat(p); err == nil && err2 == nil && os.SameFile(a, b) {
			return true
		}
	}
	return false
}

// dirMode is the mode of directories for what is installed.
func (in *installer) dirMode() fs.FileMode {
	if in.user {
		return 0o700
	}
	return 0o755
}

// nonEmpty says whether a directory is there and has something in it.
func nonEmpty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && len(entries) > 0
}
