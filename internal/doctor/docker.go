package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// dockerConf is what counts of daemon.json.
type dockerConf struct {
	file         string
	DataRoot     string          `json:"data-root"`
	Driver       string          `json:"storage-driver"`
	Experimental bool            `json:"experimental"`
	Features     map[string]bool `json:"features"`
	err          error
}

// dockerConfig reads the configuration of the dockerd that this user would run.
func (m *machine) dockerConfig() dockerConf {
	c := dockerConf{file: "/etc/docker/daemon.json"}
	root := "/var/lib/docker"
	if m.plain() {
		c.file = filepath.Join(m.xdg("XDG_CONFIG_HOME", ".config"), "docker/daemon.json")
		root = filepath.Join(m.xdg("XDG_DATA_HOME", ".local/share"), "docker")
	}
	text, err := m.ReadFile(c.file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.file = ""
	case err != nil:
		c.err = err
	case len(strings.TrimSpace(string(text))) > 0:
		c.err = json.Unmarshal(text, &c)
	}
	c.DataRoot = cmp.Or(c.DataRoot, root)
	return c
}

// dockerDrivers are the graph drivers that dockerd has built in, in any version.
func dockerDrivers() []string {
	return []string{"overlay2", "fuse-overlayfs", "btrfs", "zfs", "vfs", "devicemapper", "overlay", "aufs"}
}

// checkDocker says what dockerd keeps images with.
func checkDocker(ctx context.Context, m *machine) []Finding {
	path, ok := m.findEngine("dockerd")
	if !ok {
		return nil
	}
	c := m.dockerConfig()
	if c.err != nil {
		return one(found(Problem, "%s: %v", c.file, c.err).with(say("correct the file; dockerd does not start with it")))
	}
	version := ""
	if out, err := m.Output(ctx, path, "--version"); err == nil {
		version = versionIn(out)
	}
	where := "data in " + c.DataRoot
	if c.file != "" {
		where += ", by " + c.file
	}
	switch {
	case c.Driver == "fuse-overlayfs":
		return one(m.dockerFuse(ctx, c, where))
	case c.Driver != "" && !slices.Contains(dockerDrivers(), c.Driver):
		return one(dockerPlugin(c, version, where))
	case c.Driver == "" && c.Features["containerd-snapshotter"]:
		return one(found(OK, "images are containerd's (containerd-snapshotter); %s", where))
	case c.Driver == "vfs":
		return one(found(Warning, "the driver is vfs, which copies every layer whole; %s", where).with(m.installDocker()))
	}
	have := m.dockerState(c)
	if c.Driver == "" && len(have) > 1 {
		return one(found(Problem,
			"no storage-driver is configured, and there are layers of several (%s): dockerd does not start; %s",
			strings.Join(have, ", "), where).
			with(say(`name the one that is wanted in %s: {"storage-driver": "%s"}`, cmp.Or(c.file, "/etc/docker/daemon.json"),
				have[0])))
	}
	driver := cmp.Or(c.Driver, strings.Join(have, ", "), "what dockerd chooses")
	return one(found(Note, "the driver is %s; %s", driver, where).with(m.installDocker()))
}

func (m *machine) installDocker() Step {
	step := asRoot("plyfs install --engine docker")
	if m.plain() {
		step = asUser("plyfs install --engine docker --user")
	}
	return step.because("to have docker use plyfs; its images have to be pulled again")
}

// dockerState lists the drivers that have layers in dockerd's directory (vfs does not count for it).
func (m *machine) dockerState(c dockerConf) []string {
	var have []string
	for _, d := range dockerDrivers() {
		if names, err := m.ReadDir(filepath.Join(c.DataRoot, d)); err == nil && len(names) > 0 && d != "vfs" {
			have = append(have, d)
		}
	}
	return have
}

// dockerFuse is the finding for dockerd's driver fuse-overlayfs, which runs the program of that name on its own PATH.
func (m *machine) dockerFuse(ctx context.Context, c dockerConf, where string) Finding {
	path, err := m.LookPath("fuse-overlayfs", servicePath)
	if err != nil && m.plain() {
		path, err = m.LookPath("fuse-overlayfs", "")
	}
	if err != nil {
		return found(Problem, "the driver is fuse-overlayfs, of which there is no program on the PATH of services; %s",
			where).with(m.installLink())
	}
	p, err := m.ask(ctx, path)
	if err != nil {
		return found(Problem, "the driver is fuse-overlayfs, whose program does not run: %v; %s (%s)", err, where, c.file).
			with(m.installLink())
	}
	if !p.plyfs {
		return found(Note, "the driver is fuse-overlayfs, by %s; %s", p, where).with(m.installLink())
	}
	return found(OK, "the driver is fuse-overlayfs, by %s; %s", p, where)
}

// dockerPlugin is the finding for a driver that dockerd does not have: a graph-driver plugin, or a snapshotter of
// containerd's.
func dockerPlugin(c dockerConf, version, where string) Finding {
	snapshotter := found(OK, "the storage driver is %s, a snapshotter of containerd; %s", c.Driver, where)
	if is, ok := atLeast(version, 28, 0); !ok || is {
		return snapshotter
	}
	if c.Features["containerd-snapshotter"] {
		return snapshotter
	}
	f := found(OK, "the driver is the plugin %s; %s", c.Driver, where)
	if is, _ := atLeast(version, 27, 0); is {
		f = found(Warning, "the driver is the plugin %s, which docker %s wants to be told of; %s", c.Driver, version, where).
			with(
				say("in the unit: Environment=DOCKERD_DEPRECATED_GRAPHDRIVER_PLUGINS=1"),
				say(`or use a snapshotter: {"features": {"containerd-snapshotter": true}} and plyfs snapshotter`))
	}
	if !c.Experimental {
		f.Status = Problem
		f.Detail = fmt.Sprintf("the driver is the plugin %s, which dockerd takes in experimental mode only; %s", c.Driver,
			where)
		f.WayOut = append([]Step{say(`add to %s: "experimental": true`, c.file)}, f.WayOut...)
	}
	return f
}

// proxyPlugin is a table [proxy_plugins.NAME] of containerd's configuration.
type proxyPlugin struct {
	Type    string `toml:"type"`
	Address string `toml:"address"`
}

// checkContainerd looks at the snapshotters that containerd is told of.
func checkContainerd(m *machine) []Finding {
	if _, ok := m.findEngine("containerd"); !ok {
		return nil
	}
	file := "/etc/containerd/config.toml"
	if m.plain() {
		file = filepath.Join(m.xdg("XDG_CONFIG_HOME", ".config"), "containerd/config.toml")
	}
	var conf struct {
		Proxies map[string]proxyPlugin `toml:"proxy_plugins"`
	}
	text, err := m.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return one(found(Note, "no proxy snapshotter is configured (there is no %s)", file).with(m.installContainerd()))
	case err != nil:
		return one(found(Warning, "%v", err))
	}
	if err := toml.Unmarshal(text, &conf); err != nil {
		return one(found(Problem, "%s: %s%v", file, position(err), err).
			with(say("correct the file; containerd does not start with it")))
	}
	var all []Finding
	ours := false
	for _, name := range slices.Sorted(maps.Keys(conf.Proxies)) {
		p := conf.Proxies[name]
		socket := strings.TrimPrefix(p.Address, "unix://")
		switch {
		case p.Type != "snapshot":
		case name == "plyfs" || strings.HasSuffix(socket, "/plyfs/snapshotter.sock"):
			ours = true
			all = append(all, m.snapshotter(name, socket)...)
		default:
			all = append(all, found(OK, "%s is another snapshotter, at %s", name, socket).of(name))
		}
	}
	if !ours {
		all = append(all, found(Note, "the proxy snapshotter of plyfs is not configured (%s)", file).with(m.installContainerd()))
	}
	return all
}

func (m *machine) installContainerd() Step {
	step := asRoot("plyfs install --engine containerd")
	if m.plain() {
		step = asUser("plyfs install --engine containerd --user")
	}
	return step.because("it shows what has to be in there")
}

// snapshotter looks at one proxy snapshotter, and at what containerd needs to mount what it says.
func (m *machine) snapshotter(name, socket string) []Finding {
	if _, err := m.Stat(socket); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return one(found(OK, "the snapshotter %s is at %s, which this user may not look at", name, socket).of(name))
		}
		return one(found(Problem, "the snapshotter %s is not running: %v", name, err).of(name).
			with(asRoot("systemctl start plyfs-snapshotter").because("where plyfs was installed from a package"),
				asRoot("plyfs snapshotter --address %s", quote(socket)).because("or by hand")))
	}
	for _, program := range []string{"plyfs", "mount.fuse3"} {
		if _, err := m.LookPath(program, servicePath); err != nil {
			return one(found(Problem,
				"the snapshotter %s has a socket, and %s, by which containerd mounts, is not on the PATH of services", name, program).
				of(name).with(say("install plyfs in /usr/local/bin or /usr/bin, and the package fuse3")))
		}
	}
	return one(found(OK, "the snapshotter %s has a socket, %s", name, socket).of(name))
}

// checkNerdctl says which snapshotter nerdctl takes.
func checkNerdctl(m *machine) []Finding {
	if _, ok := m.findEngine("nerdctl"); !ok {
		return nil
	}
	file := "/etc/nerdctl/nerdctl.toml"
	if m.plain() {
		file = filepath.Join(m.xdg("XDG_CONFIG_HOME", ".config"), "nerdctl/nerdctl.toml")
	}
	var conf struct {
		Snapshotter string `toml:"snapshotter"`
	}
	text, err := m.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return one(found(Warning, "%v", err))
	}
	if err := toml.Unmarshal(text, &conf); err != nil {
		return one(found(Problem, "%s: %s%v", file, position(err), err).
			with(say("correct the file; nerdctl does not run with it")))
	}
	name := cmp.Or(m.Getenv("CONTAINERD_SNAPSHOTTER"), conf.Snapshotter, "overlayfs")
	if name == "plyfs" {
		return one(found(OK, "it uses the snapshotter plyfs"))
	}
	return one(found(Note, "it uses the snapshotter %s", name).with(say(`for plyfs add to %s: snapshotter = "plyfs"`, file)))
}
