package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"plyfs/fs/server"
)

// storageKey is a key of storage.conf(5) of containers/storage.
func storageKey(names ...string) []string { return append([]string{"storage"}, names...) }

func mountProgramKey() []string { return storageKey("options", "overlay", "mount_program") }

// storageConf is the storage.conf that podman, buildah and others of containers/storage read (cf. containers/storage
// types/options.go).
func (in *installer) storageConf() string {
	if file := in.getenv("CONTAINERS_STORAGE_CONF"); filepath.IsAbs(file) {
		return file
	}
	if in.user {
		return filepath.Join(in.xdg("XDG_CONFIG_HOME", ".config"), "containers", "storage.conf")
	}
	return in.path("/etc/containers/storage.conf")
}

// vendorStorageConf is what root's storage.conf replaces as a whole.
func (in *installer) vendorStorageConf() string { return in.path("/usr/share/containers/storage.conf") }

// planPodman makes plyfs the mount program of storage.conf.
func (in *installer) planPodman(p *installPlan, r installRecord) error {
	path := in.storageConf()
	_, err := os.Lstat(path)
	in.warnReplaced(p, err == nil)
	err = in.planFile(p, r, enginePodman, path, func(name string, old []byte) ([]byte, error) {
		base := old
		if old == nil && !in.user {
			vendor, err := readConfig(in.vendorStorageConf())
			if err != nil {
				return nil, err
			}
			base = vendor
		}
		return in.editStorageConf(name, base)
	})
	if err != nil {
		return err
	}
	p.next = append(p.next, "podman info --format '{{.Store.GraphOptions}}'")
	in.warnStore(p)
	return nil
}

// editStorageConf names the driver, where it has to be, and the mount program.
func (in *installer) editStorageConf(name string, old []byte) ([]byte, error) {
	t := &tomlText{name: name, text: old}
	driver, _, err := t.get(storageKey("driver")...)
	if err != nil {
		return nil, err
	}
	if driver != "" && driver != "overlay" {
		return nil, fmt.Errorf("%s: driver = %q uses no mount program, and was %w: what that driver keeps is not seen with "+
			"another; to change over, save the images, run podman system reset, remove the line, and install again",
			name, driver, errInstallConflict)
	}
	composefs, _, err := t.get(storageKey("options", "overlay", "use_composefs")...)
	if err != nil {
		return nil, err
	}
	if composefs == "true" {
		return nil, fmt.Errorf("%s: use_composefs does not go with a mount program, and was %w: remove it", name, errInstallConflict)
	}
	ours := filepath.Join(in.bindir, server.NameFuseOverlayfs)
	program, set, err := t.get(mountProgramKey()...)
	if err != nil {
		return nil, err
	}
	if set && program != "" && filepath.Base(program) != server.NameFuseOverlayfs {
		return nil, fmt.Errorf("%s: mount_program = %q is no fuse-overlayfs, and was %w: remove the line, and install again",
			name, program, errInstallConflict)
	}
	if err := in.setStorage(t); err != nil {
		return nil, err
	}
	if program != ours {
		if err := t.set(ours, mountProgramKey()...); err != nil {
			return nil, err
		}
	}
	return t.text, nil
}

// setStorage adds what a storage.conf must say of the storage: the defaults, in words. Without them podman, or some of its
// commands, fails with "runroot must be set".
func (in *installer) setStorage(t *tomlText) error {
	run, err := in.runRoot()
	if err != nil {
		return err
	}
	defaults := []struct{ key, value, unless string }{
		{"driver", "overlay", "driver"},
		{"graphroot", in.defaultGraphRoot(), "rootless_storage_path"},
		{"runroot", run, "runroot"},
	}
	if set, place, err := in.systemsPlace(); err != nil {
		return err
	} else if set {
		defaults[1].key, defaults[1].value, defaults[1].unless = "rootless_storage_path", place, "graphroot"
	}
	for _, d := range defaults {
		_, set, err := t.get(storageKey(d.key)...)
		if err != nil {
			return err
		}
		_, other, err := t.get(storageKey(d.unless)...)
		if err != nil {
			return err
		}
		if set || other {
			continue
		}
		if err := t.set(d.value, storageKey(d.key)...); err != nil {
			return err
		}
	}
	return nil
}

// systemStorageConf is the storage.conf that a user's replaces as a whole.
func (in *installer) systemStorageConf() (*tomlText, error) {
	for _, name := range []string{in.path("/etc/containers/storage.conf"), in.vendorStorageConf()} {
		text, err := readConfig(name)
		if text != nil || err != nil {
			return &tomlText{name: name, text: text}, err
		}
	}
	return &tomlText{}, nil
}

// systemsPlace is where the system's storage.conf has users keep their images; set is false if it leaves that to them.
func (in *installer) systemsPlace() (set bool, place string, err error) {
	if !in.user {
		return false, "", nil
	}
	t, err := in.systemStorageConf()
	if err != nil {
		return false, "", err
	}
	place, set, err = t.get(storageKey("rootless_storage_path")...)
	return set && place != "", place, err
}

// expand replaces what containers/storage does in a rootless_storage_path.
func (in *installer) expand(place string) string {
	return strings.NewReplacer("$HOME", in.home, "$USER", in.getenv("USER"), "$UID", strconv.Itoa(in.uid)).Replace(place)
}

// warnReplaced says that a user's storage.conf takes the stores away that the system's adds.
func (in *installer) warnReplaced(p *installPlan, existed bool) {
	if !in.user || existed {
		return
	}
	t, err := in.systemStorageConf()
	if err != nil {
		return
	}
	for _, key := range [][]string{storageKey("options", "additionalimagestores"), storageKey("imagestore")} {
		if _, set, err := t.get(key...); set || err != nil {
			p.warn("%s sets %s, which counts no more for you: %s takes the place of the whole file, so set it there, too",
				t.name, key[len(key)-1], in.storageConf())
		}
	}
}

// runRoot is where containers/storage keeps what does not outlive a boot.
func (in *installer) runRoot() (string, error) {
	if !in.user {
		return "/run/containers/storage", nil
	}
	dir, err := in.runtimeDir()
	return filepath.Join(dir, "containers"), err
}

// defaultGraphRoot is where containers/storage keeps images if it is not told otherwise.
func (in *installer) defaultGraphRoot() string {
	if in.user {
		return filepath.Join(in.xdg("XDG_DATA_HOME", ".local/share"), "containers", "storage")
	}
	return "/var/lib/containers/storage"
}

// graphRoot is where podman keeps its images by now.
func (in *installer) graphRoot() string {
	t := &tomlText{name: in.storageConf()}
	t.text, _ = readConfig(in.storageConf())
	if in.user {
		if dir, set, err := t.get(storageKey("graphroot")...); err == nil && set && filepath.IsAbs(dir) {
			return dir
		}
		if place, set, err := t.get(storageKey("rootless_storage_path")...); err == nil && set {
			return in.expand(place)
		}
		if set, place, err := in.systemsPlace(); err == nil && set {
			return in.expand(place)
		}
		return in.defaultGraphRoot()
	}
	if len(t.text) == 0 {
		t.text, _ = readConfig(in.vendorStorageConf())
	}
	if dir, set, err := t.get(storageKey("graphroot")...); err == nil && set && filepath.IsAbs(dir) {
		return in.path(dir)
	}
	return in.path(in.defaultGraphRoot())
}

// mountProgramMark is the file by which containers/storage remembers that a store needs a mount program (cf. its
// drivers/overlay/overlay.go getMountProgramFlagFile).
const mountProgramMark = ".has-mount-program"

// storeWantsProgram says whether a store was used with a mount program, and whether it was used without one.
func storeWantsProgram(graphRoot string) (with, without bool) {
	overlay := filepath.Join(graphRoot, "overlay")
	text, err := os.ReadFile(filepath.Join(overlay, mountProgramMark))
	if err == nil && strings.TrimSpace(string(text)) == "true" {
		return true, false
	}
	return false, nonEmpty(filepath.Join(overlay, "l"))
}

// warnStore says what the store that is there means for the mount program.
func (in *installer) warnStore(p *installPlan) {
	root := in.graphRoot()
	if _, err := os.Lstat(filepath.Join(root, "overlay-images")); errors.Is(err, fs.ErrNotExist) {
		others, _ := filepath.Glob(filepath.Join(root, "*-images"))
		for _, o := range others {
			driver := strings.TrimSuffix(filepath.Base(o), "-images")
			p.warn("%s was made by the driver %s, which podman remembers and goes on with: save the images, run podman system reset, "+
				"and load them again", root, driver)
		}
	}
	if _, without := storeWantsProgram(root); without {
		p.warn("%s was used with the kernel's overlayfs so far. Its images and containers go on with plyfs; stop the containers "+
			"first. There is no way back with the same store: what is pulled now has deletions in a form that the kernel's "+
			"overlayfs does not read", root)
	}
}

// warnNative says when podman would not use the program that was linked.
func (in *installer) warnNative(p *installPlan) {
	if in.lookPath("podman") == "" && in.lookPath("buildah") == "" {
		return
	}
	t := &tomlText{name: in.storageConf()}
	var err error
	if t.text, err = readConfig(t.name); err != nil {
		return
	}
	switch program, set, err := t.get(mountProgramKey()...); {
	case err != nil:
	case !set:
		p.warn("podman and buildah use the kernel's overlayfs where they can, since %s names no mount_program: add --storage-conf",
			t.name)
	case program != filepath.Join(in.bindir, server.NameFuseOverlayfs):
		p.warn("podman and buildah use %s, which %s names: add --storage-conf", program, t.name)
	}
}

// warnDangling says what still names a program that is gone with its link.
func (in *installer) warnDangling(undone []installChange) (warnings []string) {
	for _, c := range undone {
		if c.Kind != changeLink || filepath.Base(c.Path) != server.NameFuseOverlayfs {
			continue
		}
		t := &tomlText{name: in.storageConf()}
		t.text, _ = readConfig(t.name)
		if program, _, err := t.get(mountProgramKey()...); err == nil && program == c.Path {
			warnings = append(warnings, fmt.Sprintf("%s still names %s, which is gone: podman does not start until you remove the line "+
				"mount_program, or name another program there", t.name, c.Path))
		}
		text, _ := readConfig(in.daemonJSON())
		var d struct {
			Driver string `json:"storage-driver"`
		}
		if json.Unmarshal(text, &d) == nil && d.Driver == server.NameFuseOverlayfs && in.lookPath(server.NameFuseOverlayfs) == "" {
			warnings = append(warnings, fmt.Sprintf("%s still has the storage-driver %s, and no such program is left: dockerd does not "+
				"start until you install one, or remove the line", in.daemonJSON(), d.Driver))
		}
	}
	return warnings
}

// warnUndone says what the store means for a storage.conf that no longer names plyfs.
func (in *installer) warnUndone(undone []installChange) (warnings []string) {
	for _, c := range undone {
		if c.Engine != enginePodman {
			continue
		}
		t := &tomlText{name: c.Path}
		t.text, _ = readConfig(c.Path)
		program, _, err := t.get(mountProgramKey()...)
		if with, _ := storeWantsProgram(in.graphRoot()); with && err == nil && program == "" {
			warnings = append(warnings, fmt.Sprintf("%s has layers that the kernel's overlayfs does not read: name a mount_program in "+
				"%s (/usr/bin/fuse-overlayfs reads them too), or run podman system reset", in.graphRoot(), c.Path))
		}
	}
	return warnings
}
