package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// storageConf is what counts of storage.conf (containers-storage.conf(5)).
type storageConf struct {
	// file is where it was read, "" if there is none.
	file              string
	Driver, GraphRoot string
	mountProgram      string
	err               error
}

// storageFiles are the places of storage.conf, the one that counts first.
func (m *machine) storageFiles() []string {
	if file := m.Getenv("CONTAINERS_STORAGE_CONF"); file != "" {
		return []string{file}
	}
	system := []string{"/etc/containers/storage.conf", "/usr/share/containers/storage.conf"}
	if !m.plain() {
		return system
	}
	return append([]string{filepath.Join(m.xdg("XDG_CONFIG_HOME", ".config"), "containers/storage.conf")}, system...)
}

// xdg is a directory of the XDG base directories.
func (m *machine) xdg(variable, otherwise string) string {
	if dir := m.Getenv(variable); filepath.IsAbs(dir) {
		return dir
	}
	return filepath.Join(m.user.Home, otherwise)
}

// podmanStorage reads the configuration that podman and buildah of this user have.
func (m *machine) podmanStorage() storageConf {
	c := storageConf{GraphRoot: "/var/lib/containers/storage"}
	if m.plain() {
		c.GraphRoot = filepath.Join(m.xdg("XDG_DATA_HOME", ".local/share"), "containers/storage")
	}
	for _, file := range m.storageFiles() {
		text, err := m.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		c.file, c.err = file, err
		if err == nil {
			c.read(m, text)
		}
		break
	}
	if d := m.Getenv("STORAGE_DRIVER"); d != "" {
		c.Driver = d
	}
	return c
}

// read takes what counts from the text of a file.
func (c *storageConf) read(m *machine, text []byte) {
	var t struct {
		Storage struct {
			Driver       string `toml:"driver"`
			GraphRoot    string `toml:"graphroot"`
			RootlessPath string `toml:"rootless_storage_path"`
			Options      struct {
				MountProgram string `toml:"mount_program"`
				Overlay      struct {
					MountProgram string `toml:"mount_program"`
				} `toml:"overlay"`
			} `toml:"options"`
		} `toml:"storage"`
	}
	if err := toml.Unmarshal(text, &t); err != nil {
		c.err = fmt.Errorf("%s%w", position(err), err)
		return
	}
	s := t.Storage
	c.Driver = s.Driver
	c.mountProgram = cmp.Or(s.Options.Overlay.MountProgram, s.Options.MountProgram)
	// The files of the system give a user's storage its place by another key.
	system := strings.HasPrefix(c.file, "/etc/") || strings.HasPrefix(c.file, "/usr/")
	switch {
	case m.plain() && !system && s.GraphRoot != "":
		c.GraphRoot = s.GraphRoot
	case m.plain() && s.RootlessPath != "":
		c.GraphRoot = strings.NewReplacer("$HOME", m.user.Home, "$USER", m.user.Name, "$UID",
			fmt.Sprint(m.user.UID)).Replace(s.RootlessPath)
	case m.plain() && system:
	case s.GraphRoot != "":
		c.GraphRoot = s.GraphRoot
	}
}

// position is where in a TOML file an error is.
func position(err error) string {
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		line, _ := bad.Position()
		return fmt.Sprintf("line %d: ", line)
	}
	return ""
}

// checkPodman says what podman and buildah mount containers with.
func checkPodman(ctx context.Context, m *machine) []Finding {
	c := m.podmanStorage()
	_, podman := m.findEngine("podman")
	_, buildah := m.findEngine("buildah")
	if !podman && !buildah && c.file == "" {
		return nil
	}
	where := "without a storage.conf"
	if c.file != "" {
		where = "by " + c.file
	}
	if c.err != nil {
		return one(found(Problem, "%s: %v", c.file, c.err).
			with(say("correct the file; podman and buildah don't start with it")))
	}
	storage := fmt.Sprintf("storage in %s, %s", c.GraphRoot, where)
	if c.Driver != "" && c.Driver != "overlay" && c.Driver != "overlay2" {
		f := found(Note, "the driver is %s; %s", c.Driver, storage)
		if c.Driver == "vfs" {
			f = found(Warning, "the driver is vfs, which copies every layer whole; %s", storage)
		}
		return one(f.with(m.installPodman()...))
	}
	if c.mountProgram == "" {
		return one(m.nativePodman(ctx, c, storage))
	}
	p, err := m.ask(ctx, c.mountProgram)
	switch {
	case err != nil:
		return one(found(Problem, "the mount program %s of %s does not run, and no container will: %v", c.mountProgram,
			c.file, err).
			with(m.installPodman()...))
	case !p.plyfs:
		return one(found(Note, "the mount program is %s; %s", p, storage).with(m.installPodman()...))
	}
	return one(found(OK, "the mount program is %s; %s", p, storage))
}

// installPodman is how podman gets plyfs.
func (m *machine) installPodman() []Step {
	step := asRoot("plyfs install --engine podman")
	if m.plain() {
		step = asUser("plyfs install --engine podman --user")
	}
	return []Step{step.because("name plyfs in storage.conf")}
}

// nativePodman is the finding where no mount program is configured: podman takes the kernel's overlay or, where that
// does not work, the fuse-overlayfs on PATH.
func (m *machine) nativePodman(ctx context.Context, c storageConf, storage string) Finding {
	if m.exists(filepath.Join(c.GraphRoot, "overlay/.has-mount-program")) {
		return found(Note, "no mount program is configured, and the storage was made with one: podman takes the "+
			"fuse-overlayfs on PATH; %s",
			storage).with(m.installPodman()...)
	}
	others := m.otherDrivers(c)
	if len(others) > 0 {
		return found(Note, "the storage has layers of the driver %s: podman stays with what its database says; %s",
			strings.Join(others, ", "), storage).
			with(asUser("podman info --format '{{.Store.GraphDriverName}}'").because("see which it is"),
				asUser("podman system reset").because("to change it; removes all containers and images"))
	}
	path, err := m.LookPath("fuse-overlayfs", "")
	if err != nil {
		return found(Note, "the kernel's overlay, no mount program is configured; %s", storage).with(m.installPodman()...)
	}
	p, err := m.ask(ctx, path)
	if err != nil {
		return found(Warning, "%v", err).with(m.installLink())
	}
	return found(Note, "the kernel's overlay where that works, else %s; %s", p, storage).with(m.installPodman()...)
}

// otherDrivers are drivers other than overlay that have layers in podman's storage.
func (m *machine) otherDrivers(c storageConf) []string {
	var others []string
	for _, d := range []string{"vfs", "btrfs", "zfs", "devicemapper"} {
		if names, err := m.ReadDir(filepath.Join(c.GraphRoot, d+"-layers")); err == nil &&
			slices.Contains(names, "layers.json") {
			others = append(others, d)
		}
	}
	return others
}
