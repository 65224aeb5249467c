//go:build engines

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/e2e/listing"
	"plyfs/internal/testenv"
)

// containerdTest is a containerd that has plyfs snapshotter as a proxy plugin of the name plyfs.
type containerdTest struct {
	*engine
	whole  *testing.T // the test with all its subtests
	plyfs  string     // the program
	driver string
	// mounts says who mounts containers, as the flag of the snapshotter does.
	mounts string
	// bin is where ctr and containerd are, "" for PATH.
	bin string
	// config is the version of containerd's configuration: 2 up to containerd 1.7, which here has no differ.
	config int
	// cri says that containerd serves Kubernetes' interface too.
	cri  bool
	want []string
	// within is the command that runs others where the daemons are, none for this namespace.
	within []string
	// flags are those of ctr run.
	flags []string

	snapshotter, containerd *process
}

// process is a program that a test keeps running.
type process struct {
	name string
	pid  int
	log  *bytes.Buffer
	done chan error
	// fails says that its status tells of a failure whenever it is asked to end.
	fails bool
}

// TestContainerd runs Debian's containerd with the driver that is the default.
func TestContainerd(t *testing.T) { newContainerd(t, "plyfs").life(t) }

// newContainerd starts the snapshotter and containerd.
func newContainerd(t *testing.T, driver string) *containerdTest {
	t.Helper()
	c := prepareContainerd(t, driver)
	c.start(t)
	return c
}

// prepareContainerd prepares what newContainerd starts.
func prepareContainerd(t *testing.T, driver string) *containerdTest {
	t.Helper()
	e := newEngine(t, 0)
	e.clean = nil
	c := &containerdTest{engine: e, whole: t, driver: driver, mounts: "auto", config: 2}
	c.install(t)
	return c
}

func (c *containerdTest) start(t *testing.T) {
	t.Helper()
	c.startSnapshotter(t)
	c.startContainerd(t)
	t.Cleanup(func() {
		if t.Failed() {
			// What a test that failed left running would keep its mounts.
			_, _ = c.ctrTry("tasks", "rm", "-f", "box")
		}
	})
}

// install puts plyfs on the PATH of everything that is started.
func (c *containerdTest) install(t *testing.T) {
	t.Helper()
	var err error
	if c.plyfs, err = filepath.Abs(testenv.Binary(t)); err != nil {
		t.Fatal(err)
	}
	for i, v := range c.env {
		if strings.HasPrefix(v, "PATH=") {
			c.env[i] = "PATH=" + filepath.Dir(c.plyfs) + ":" + os.Getenv("PATH")
		}
	}
}

// spawn starts a program that is ended with the test.
func (c *containerdTest) spawn(t *testing.T, name string, args ...string) *process {
	t.Helper()
	cmd := c.command(context.Background(), slices.Concat(c.within, args)...)
	p := &process{name: name, log: &bytes.Buffer{}, done: make(chan error, 1)}
	logged, err := os.CreateTemp(c.dir, name+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer logged.Close()
	cmd.Stdout, cmd.Stderr = logged, logged
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	p.pid = cmd.Process.Pid
	go func() { p.done <- cmd.Wait() }()
	path := logged.Name()
	c.whole.Cleanup(func() {
		p.end(c.whole, unix.SIGTERM)
		if c.whole.Failed() {
			text, _ := os.ReadFile(path)
			c.whole.Logf("the log of %s ends:\n%s", name, tail(string(text), 30))
		}
	})
	return p
}

// end ends a process that was started, and waits for it.
func (p *process) end(t *testing.T, sig syscall.Signal) {
	t.Helper()
	select {
	case err := <-p.done:
		p.done <- err
		return
	default:
	}
	_ = unix.Kill(p.pid, sig)
	select {
	case err := <-p.done:
		if sig != unix.SIGKILL && !p.fails && err != nil {
			t.Errorf("%s ends with %v", p.name, err)
		}
		p.done <- err
	case <-time.After(40 * time.Second):
		_ = unix.Kill(p.pid, unix.SIGKILL)
		t.Errorf("%s does not end at signal %d", p.name, sig)
	}
}

func (c *containerdTest) startSnapshotter(t *testing.T) {
	t.Helper()
	c.snapshotter = c.spawn(t, "snapshotter", c.plyfs, "snapshotter", "--address", "unix://"+c.path("plyfs.sock"), "--root", c.path("store"),
		"--driver", c.driver, "--mounts", c.mounts, "--containerd-address", c.path("containerd.sock"), "--log-level", "debug")
	c.waitFor(t, c.snapshotter, func() error {
		_, err := os.Stat(c.path("plyfs.sock"))
		return err
	})
}

// anotherSnapshotter starts a snapshotter in the place of one that has ended, and waits until containerd speaks to it: of what
// fails before, such as the removal of garbage, containerd tries nothing again. It needs the snapshot of the container box.
func (c *containerdTest) anotherSnapshotter(t *testing.T) {
	t.Helper()
	c.startSnapshotter(t)
	// containerd tells a connection that is gone from one that is back by itself, after a while.
	c.waitFor(t, c.snapshotter, func() error {
		_, err := c.ctrTry("snapshots", "--snapshotter", "plyfs", "info", "box")
		return err
	})
}

// collect has containerd collect its garbage now. Until something is removed it will not do so again.
func (c *containerdTest) collect(t *testing.T) {
	t.Helper()
	c.ctr(t, "leases", "create", "--id", "collect")
	c.ctr(t, "leases", "rm", "--sync", "collect")
}

// containerdConfig is a configuration in which nothing of the machine's containerd counts.
func (c *containerdTest) containerdConfig() string {
	disabled := `"io.containerd.internal.v1.opt"`
	if !c.cri {
		disabled += `, "io.containerd.grpc.v1.cri"`
	}
	text := fmt.Sprintf(`version = %d
root = %q
state = %q
disabled_plugins = [`+disabled+`]
[grpc]
  address = %q
[proxy_plugins.plyfs]
  type = "snapshot"
  address = %q
`, c.config, c.path("containerd"), c.path("containerd-run"), c.path("containerd.sock"), c.path("plyfs.sock"))
	if c.config < 3 {
		// containerd 1.6 ends in a panic over a proxy plugin that is no snapshotter and no content store.
		return text + c.criConfig()
	}
	return text + c.criConfig() + fmt.Sprintf(`[proxy_plugins.plyfs-diff]
  type = "diff"
  address = %q
[plugins."io.containerd.service.v1.diff-service"]
  default = ["plyfs-diff", "walking"]
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/%s"
  snapshotter = "plyfs"
  differ = "plyfs-diff"
`, c.path("plyfs.sock"), runtime.GOARCH)
}

// criConfig has containers of Kubernetes on plyfs. Their pause is the test's own image, and runs where nobody may become a worse victim
// for the kernel than he is.
func (c *containerdTest) criConfig() string {
	switch {
	case !c.cri:
		return ""
	case c.config < 3:
		return fmt.Sprintf(`[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  stats_collect_period = 1
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "plyfs"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = %q
`, imageName, c.path("cni"))
	}
	return fmt.Sprintf(`[proxy_plugins.plyfs.exports]
  root = %q
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "plyfs"
  stats_collect_period = 1
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = %q
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    conf_dir = %q
`, c.path("store"), imageName, c.path("cni"))
}

func (c *containerdTest) startContainerd(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(c.path("containerd.toml"), []byte(c.containerdConfig()), 0o644); err != nil {
		t.Fatal(err)
	}
	c.containerd = c.spawn(t, "containerd", c.bin+"containerd", "--config", c.path("containerd.toml"))
	c.waitFor(t, c.containerd, func() error {
		_, err := c.ctrTry("version")
		return err
	})
}

// waitFor waits until a process that was started serves.
func (c *containerdTest) waitFor(t *testing.T, p *process, ready func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := ready()
		if err == nil {
			return
		}
		select {
		case err := <-p.done:
			p.done <- err
			t.Fatalf("%s ended: %v", p.name, err)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not serve: %v", p.name, err)
		}
	}
}

// try is engine.try where the daemons are.
func (c *containerdTest) try(args ...string) (string, error) {
	return c.engine.try(slices.Concat(c.within, args)...)
}

// run is engine.run where the daemons are.
func (c *containerdTest) run(t *testing.T, args ...string) string {
	t.Helper()
	return c.engine.run(t, slices.Concat(c.within, args)...)
}

func (c *containerdTest) ctrTry(args ...string) (string, error) {
	return c.try(append([]string{c.bin + "ctr", "-a", c.path("containerd.sock")}, args...)...)
}

func (c *containerdTest) ctr(t *testing.T, args ...string) string {
	t.Helper()
	return c.run(t, append([]string{c.bin + "ctr", "-a", c.path("containerd.sock")}, args...)...)
}

// snapshot is ctr snapshots on plyfs.
func (c *containerdTest) snapshot(t *testing.T, args ...string) string {
	t.Helper()
	return c.ctr(t, append([]string{"snapshots", "--snapshotter", "plyfs"}, args...)...)
}

// runArgs are those of ctr run, before the image.
func (c *containerdTest) runArgs(flags ...string) []string {
	return slices.Concat([]string{
		"run", "--snapshotter", "plyfs", "--mount", "type=bind,src=" + c.path("treedump") + ",dst=/treedump,options=rbind:ro",
	}, c.flags, flags)
}

// list runs the program that lists the image's tree in a container of its own.
func (c *containerdTest) list(t *testing.T, image string) []string {
	t.Helper()
	out := c.ctr(t, append(c.runArgs("--rm"), image, "list", "/treedump", "/", "data")...)
	return outputLines(out)
}

func (c *containerdTest) exec(t *testing.T, box string, args ...string) string {
	t.Helper()
	id := fmt.Sprintf("exec%d", time.Now().UnixNano())
	return c.ctr(t, append([]string{"tasks", "exec", "--exec-id", id, box}, args...)...)
}

func outputLines(text string) []string { return strings.Split(strings.TrimSuffix(text, "\n"), "\n") }

// life imports an image, runs containers, and removes everything, with both daemons being killed in between.
func (c *containerdTest) life(t *testing.T) {
	im := engineImage(t)
	im.writeDocker(t, c.path("docker.tar"), imageName)
	c.want = listing.Lines(im.entries("data"))
	c.ctr(t, "images", "import", "--snapshotter", "plyfs", c.path("docker.tar"))
	checkLines(t, "the image", c.want, c.list(t, imageName))
	t.Run("restart", c.restart)
	t.Run("commit", c.commit)
	t.Run("clean", c.clean)
}

// checkMounts holds that what containerd gets for the container box is what the snapshotter was told to give.
func (c *containerdTest) checkMounts(t *testing.T) {
	t.Helper()
	if c.driver != "plyfs" {
		return
	}
	want := map[string]string{"auto": "bind ", "helper": "fuse3."}[c.mounts]
	if m := c.snapshot(t, "mounts", "/x", "box"); !strings.HasPrefix(m, "mount -t "+want) {
		t.Errorf("a container is mounted with %s", m)
	}
}

// restart ends and kills the snapshotter, and containerd, under a container.
func (c *containerdTest) restart(t *testing.T) {
	c.ctr(t, append(c.runArgs("-d"), imageName, "box", "sleep", "1000")...)
	c.checkMounts(t)
	c.exec(t, "box", "sh", "-ec", work)
	live := outputLines(c.exec(t, "box", "/treedump", "/", "data"))
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGKILL} {
		c.snapshotter.end(t, sig)
		checkLines(t, "the container while there is no snapshotter", live, outputLines(c.exec(t, "box", "/treedump", "/", "data")))
		if out, err := c.ctrTry(append(c.runArgs("--rm"), imageName, "none", "true")...); err == nil {
			t.Errorf("a container was made without a snapshotter: %s", out)
		}
		c.anotherSnapshotter(t)
		checkLines(t, "the container with another snapshotter", live, outputLines(c.exec(t, "box", "/treedump", "/", "data")))
		checkLines(t, "a new container", c.want, c.list(t, imageName))
	}
	c.containerd.end(t, unix.SIGKILL)
	c.startContainerd(t)
	checkLines(t, "the container with another containerd", live, outputLines(c.exec(t, "box", "/treedump", "/", "data")))
	c.ctr(t, "tasks", "kill", "-s", "KILL", "box")
	c.waitGone(t, "box")
	c.ctr(t, "tasks", "start", "-d", "box")
	checkLines(t, "the container, started again,", live, outputLines(c.exec(t, "box", "/treedump", "/", "data")))
}

// waitGone waits until a task was ended, and deletes it.
func (c *containerdTest) waitGone(t *testing.T, box string) {
	t.Helper()
	c.waitFor(t, c.containerd, func() error {
		_, err := c.ctrTry("tasks", "rm", box)
		return err
	})
}

// commit makes snapshots of a container's, as commits do, and a layer.
func (c *containerdTest) commit(t *testing.T) {
	live := outputLines(c.exec(t, "box", "/treedump", "/", "data"))
	before := c.calls(t, "Diff")
	if err := os.WriteFile(c.path("layer.tar.gz"), []byte(c.snapshot(t, "diff", "box")), 0o600); err != nil {
		t.Fatal(err)
	}
	if c.config > 2 && c.calls(t, "Diff") == before {
		t.Error("ctr snapshots diff did not ask plyfs for the difference")
	}
	names := c.run(t, "tar", "-tzf", c.path("layer.tar.gz"))
	for _, want := range []string{"data/made", "data/.wh.f40", "data/top", "data/op/again"} {
		if !strings.Contains(names, want) {
			t.Errorf("the layer of the container does not have %s: %s", want, names)
		}
	}
	if usage := c.snapshot(t, "usage", "box"); !strings.Contains(usage, "box") {
		t.Errorf("the usage of a container is %q", usage)
	}
	c.ctr(t, "tasks", "kill", "-s", "KILL", "box")
	c.waitGone(t, "box")
	c.snapshot(t, "commit", "committed", "box")
	c.snapshot(t, "prepare", "next", "committed")
	// ctr labels other snapshots so that containerd does not collect them as garbage, and views it does not. One that is collected
	// stays on the list of its parent's children, which then cannot be removed.
	c.collect(t)
	c.snapshot(t, "view", "look", "committed")
	target := c.path("look")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	mount := strings.TrimSpace(c.snapshot(t, "mounts", target, "look"))
	if rest, ok := strings.CutPrefix(mount, "mount -t fuse3."); ok {
		// containerd calls the helper of such types itself, and mount(8) would look for a program fuse3.plyfs-mount.
		program, rest, _ := strings.Cut(rest, " ")
		mount = "/sbin/mount.fuse3 " + rest + " -t " + program // and plyfs takes relative paths
	}
	// mount(8) hands on no more than a page of options, and containerd makes them shorter in the same way.
	home := c.path("store/layers/" + c.driver)
	c.run(t, "sh", "-ec", "cd "+home+"; "+strings.ReplaceAll(mount, home+"/", ""))
	checkLines(t, "a view of the committed snapshot", live, outputLines(c.run(t, c.path("treedump"), target, "data")))
	if err := os.WriteFile(filepath.Join(target, "new"), nil, 0o600); err == nil {
		t.Error("a view can be written to")
	}
	testenv.Unmount(t, target)
	for _, name := range []string{"look", "next", "committed"} {
		c.snapshot(t, "rm", name)
	}
}

// calls counts the calls of a method of the snapshotter or differ.
func (c *containerdTest) calls(t *testing.T, method string) int {
	t.Helper()
	logs, err := filepath.Glob(c.path("snapshotter-*.log"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range logs {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		n += strings.Count(string(text), "call="+method+" ")
		if strings.Contains(string(text), "by mounting and walking") {
			t.Errorf("a difference was made by mounting and walking: %s", name)
		}
	}
	return n
}

// clean removes everything, and looks at what is left.
func (c *containerdTest) clean(t *testing.T) {
	c.ctr(t, "containers", "rm", "box")
	c.ctr(t, "images", "rm", "--sync", imageName)
	c.waitFor(t, c.snapshotter, func() error {
		if left := outputLines(c.snapshot(t, "ls")); len(left) > 1 {
			return fmt.Errorf("snapshots stay: %v", left)
		}
		return nil
	})
	c.snapshotter.end(t, unix.SIGTERM)
	report := c.run(t, c.plyfs, "layer", "check", "--root", c.path("store"))
	if out := c.run(t, "sh", "-c", "ls -A "+c.path("store/records")+" "+c.path("store/unfinished")); strings.Contains(out, "json") {
		t.Errorf("records stay: %s\n%s", out, report)
	}
	layers, err := os.ReadDir(c.path("store/layers/" + c.driver))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		if len(l.Name()) == 32 {
			t.Errorf("layer %s stays in the driver's directory", l.Name())
		}
	}
}
