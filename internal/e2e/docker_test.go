//go:build engines

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/e2e/listing"
	"plyfs/internal/testenv"
)

// dockerClient is the client of the package docker.io: what else goes by its name may be of a version that the daemon does not
// understand.
const dockerClient = "/usr/bin/docker"

// dockerTest is a dockerd with a storage of its own, without networks.
type dockerTest struct {
	*engine
	// top is the test, whose end ends what runs in the background.
	top *testing.T
	// program is dockerd, and data its directory; driver is the storage driver.
	program, data, driver string
	flags                 []string
	// client is the command that talks to it.
	client string
	want   []string
	dump   string
	// capless says that containers are in a user namespace that is not the engine's, and see no file capabilities.
	capless bool
	// daemon runs, and so does plugin, which is nil without one; its flags follow.
	daemon, plugin *background
	pluginFlags    []string
}

// background is a program that a test keeps running. Its output is in a file.
type background struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
}

// newDocker prepares dockerd 20.10 with a storage driver; prepare, if not nil, is called before it is started.
func newDocker(t *testing.T, driver string, prepare func(*dockerTest)) *dockerTest {
	t.Helper()
	e := newEngine(t, 0)
	e.clean = nil
	d := &dockerTest{engine: e, top: t, program: "dockerd", data: e.path("docker"), driver: driver, client: dockerClient, flags: []string{
		"--iptables=false", "--ip6tables=false", "--bridge=none", "--ip-forward=false", "--ip-masq=false", "--userland-proxy=false",
	}}
	d.flags = append(d.flags, "--oom-score-adjust=0", "--experimental")
	if err := os.WriteFile(e.path("empty.toml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(e.path("daemon.json"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	e.env = append(e.env, "PATH="+e.path("bin")+":"+os.Getenv("PATH"), "DOCKER_HOST=unix://"+e.path("docker.sock"),
		"DOCKER_BUILDKIT=0")
	im := engineImage(t)
	im.writeDocker(t, e.path("docker.tar"), imageName)
	d.want, d.dump = listing.Lines(im.entries("data")), e.treedump()+":/treedump:ro"
	t.Cleanup(func() { d.checkEmpty(t) })
	if prepare != nil {
		prepare(d)
	}
	if d.plugin == nil && d.pluginFlags != nil {
		d.startPlugin(t)
	}
	d.startDaemon(t)
	expect(t, "the storage driver", d.docker(t, "info", "--format", "{{.Driver}}"), driver+"\n")
	return d
}

// withPlugin has dockerd find a plugin with a driver, as the storage driver plyfs.
func withPlugin(driver string, flags ...string) func(*dockerTest) {
	return func(d *dockerTest) {
		d.pluginFlags = append([]string{"--driver", driver}, flags...)
	}
}

// launch starts a program in the background, which is ended with the test.
func (e *engine) launch(t *testing.T, name string, args ...string) *background {
	t.Helper()
	b := &background{name: name, done: make(chan struct{}), cmd: e.command(context.Background(), args...)}
	out, err := os.CreateTemp(e.dir, name+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	b.log, b.cmd.Stdout, b.cmd.Stderr = out.Name(), out, out
	if err := b.cmd.Start(); err != nil {
		t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	go func() {
		defer close(b.done)
		_ = b.cmd.Wait() // the log tells how it ended
	}()
	t.Cleanup(func() {
		b.end(t, unix.SIGTERM)
		if t.Failed() {
			t.Logf("the log of %s ends:\n%s", name, b.tail(30))
		}
	})
	return b
}

func (b *background) tail(n int) string {
	text, err := os.ReadFile(b.log)
	if err != nil {
		return err.Error()
	}
	return tail(string(text), n)
}

// end sends a signal, and waits for the program to end.
func (b *background) end(t *testing.T, sig unix.Signal) {
	t.Helper()
	_ = b.cmd.Process.Signal(sig)
	select {
	case <-b.done:
	case <-time.After(60 * time.Second):
		_ = b.cmd.Process.Kill()
		t.Errorf("%s does not end at %v; its log ends:\n%s", b.name, sig, b.tail(20))
	}
}

// wait waits until the program is ready, which it is not allowed to end before.
func (b *background) wait(t *testing.T, ready func() error) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		err := ready()
		if err == nil {
			return
		}
		select {
		case <-b.done:
			t.Fatalf("%s ended: %v\n%s", b.name, b.cmd.ProcessState, b.tail(20))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer: %v\n%s", b.name, err, b.tail(20))
		}
	}
}

// startDaemon starts dockerd and waits until it answers.
func (d *dockerTest) startDaemon(t *testing.T) {
	t.Helper()
	args := append([]string{
		d.program, "--config-file", d.path("daemon.json"), "--data-root", d.data, "--exec-root", d.path("docker-run"),
		"--pidfile", d.path("docker.pid"), "-H", "unix://" + d.path("docker.sock"), "--storage-driver", d.driver,
	}, d.flags...)
	d.daemon = d.launch(d.top, "dockerd", args...)
	d.daemon.wait(t, func() error {
		_, err := d.try(d.client, "version")
		return err
	})
}

// killDaemon ends dockerd at once, and waits for its containerd, which ends after it, and whose place the next one takes.
func (d *dockerTest) killDaemon(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(d.path("docker-run/containerd/containerd.pid"))
	if err != nil {
		t.Fatal(err)
	}
	d.daemon.end(t, unix.SIGKILL)
	var pid int
	if _, err := fmt.Sscan(string(text), &pid); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "dockerd's containerd ends", func() bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) })
}

// pluginSocket is where dockerd looks for the plugin; /run is the test's own.
const pluginSocket = "/run/docker/plugins/plyfs.sock"

// startPlugin starts the plugin and waits until it listens.
func (d *dockerTest) startPlugin(t *testing.T) {
	t.Helper()
	d.plugin = d.launch(d.top, "graphplugin", append([]string{
		testenv.Binary(t), "graphplugin", "--config", d.path("empty.toml"), "--address", pluginSocket, "--state-dir", d.path("state"),
		"--log-level", "debug",
	}, d.pluginFlags...)...)
	d.plugin.wait(t, func() error {
		_, err := os.Stat(pluginSocket)
		return err
	})
}

// docker runs the client.
func (d *dockerTest) docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := d.try(append([]string{d.client}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// checkEmpty checks that no server of a mount, and no mount, is left when all has ended.
func (d *dockerTest) checkEmpty(t *testing.T) {
	t.Helper()
	// dockerd binds its directory over itself, and one that is killed leaves that.
	_ = unix.Unmount(d.data, unix.MNT_DETACH)
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], d.dir+"/") {
			t.Errorf("left mounted: %s", f[4])
			_ = unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err == nil && strings.HasPrefix(string(text), "plyfs\x00mount\x00") && strings.Contains(string(text), d.dir) {
			t.Errorf("a server is left: %s", strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
}

// TestDockerDropIn runs a dockerd whose graph driver fuse-overlayfs finds plyfs under that name on PATH.
func TestDockerDropIn(t *testing.T) {
	d := newDocker(t, "fuse-overlayfs", nil)
	d.load(t)
	t.Run("container", d.container)
	t.Run("commit with an open file", d.commitOpen)
	d.clean(t)
}

// TestDockerPlugin runs a dockerd with plyfs graphplugin, which is restarted and killed, as dockerd is.
func TestDockerPlugin(t *testing.T) {
	d := newDocker(t, "plyfs", withPlugin("plyfs"))
	d.load(t)
	t.Run("container", d.container)
	t.Run("commit with an open file", d.commitOpen)
	t.Run("build", d.build)
	t.Run("plugin killed", d.pluginKilled)
	t.Run("dockerd killed", d.dockerdKilled)
	d.clean(t)
}
