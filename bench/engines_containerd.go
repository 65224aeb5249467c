package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// containerd is containerd with a root and sockets of its own, and one snapshotter.
type containerd struct {
	dir         string
	env         []string
	snapshotter string
	image       string // archive
	daemons     []*daemonProcess
	count       int
}

// daemonProcess is a daemon that was started.
type daemonProcess struct {
	cmd    *exec.Cmd
	output bytes.Buffer
	ended  chan struct{}
}

// newContainerd sets containerd up, with the image.
func (h *engineHost) newContainerd(ctx context.Context, dir, system string) (engine containerEngine, err error) {
	c := &containerd{dir: dir, snapshotter: strings.TrimPrefix(system, "snapshotter-"), image: h.image}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return nil, err
	}
	// mount.fuse3 finds the program that mounts by its name.
	for _, name := range []string{Plyfs, mountProgramName} {
		if err := os.Symlink(filepath.Join(filepath.Dir(h.program), name), filepath.Join(bin, name)); err != nil {
			return nil, err
		}
	}
	c.env = []string{"HOME=" + dir, "PATH=" + bin + ":" + os.Getenv("PATH"), "LANG=C.UTF-8", "TMPDIR=" + os.TempDir()}
	if err := c.writeConfig(); err != nil {
		return nil, err
	}
	if c.snapshotter == Plyfs {
		daemon := filepath.Join(filepath.Dir(h.program), "plyfsd")
		err := c.start(ctx, c.path("snapshotter.sock"), daemon, "snapshotter", "--address", c.path("snapshotter.sock"),
			"--root", c.path("snapshots"), "--driver", Plyfs, "--driver-opt", "mount_program="+h.program,
			"--containerd-address", c.path("containerd.sock"))
		if err != nil {
			return nil, err
		}
	}
	if err := c.start(ctx, c.path("containerd.sock"), "containerd", "--config", c.path("config.toml")); err != nil {
		return nil, err
	}
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	_, err = c.ctr(ctx, "image", "import", "--snapshotter", c.snapshotter, h.image)
	return c, err
}

func (c *containerd) path(name string) string { return filepath.Join(c.dir, name) }

func (c *containerd) writeConfig() error {
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = %q\n",
		c.path("root"), c.path("state"), c.path("containerd.sock"))
	if c.snapshotter == Plyfs {
		text += fmt.Sprintf("[proxy_plugins.%s]\n  type = \"snapshot\"\n  address = %q\n", Plyfs, c.path("snapshotter.sock"))
	}
	return os.WriteFile(c.path("config.toml"), []byte(text), 0o600)
}

// start starts a daemon and waits for its socket.
func (c *containerd) start(ctx context.Context, socket string, args ...string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	d := &daemonProcess{cmd: exec.Command(path, args[1:]...), ended: make(chan struct{})}
	d.cmd.Dir, d.cmd.Env, d.cmd.Stdout, d.cmd.Stderr = c.dir, c.env, &d.output, &d.output
	if err := d.cmd.Start(); err != nil {
		return err
	}
	go func() {
		_ = d.cmd.Wait()
		close(d.ended)
	}()
	c.daemons = append(c.daemons, d)
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if _, err := os.Stat(socket); err == nil {
			return nil
		}
		select {
		case <-d.ended:
			return fmt.Errorf("%s ended: %v: %s", args[0], d.cmd.ProcessState, lastLines(d.output.String(), 20))
		case <-ctx.Done():
			return fmt.Errorf("%s does not listen at %s: %w", args[0], socket, ctx.Err())
		case <-time.After(10 * pollInterval):
		}
	}
}

// ready waits until containerd answers.
func (c *containerd) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		_, err := c.ctr(ctx, "version")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * pollInterval):
		}
	}
}

func (c *containerd) ctr(ctx context.Context, args ...string) (string, error) {
	return commandIn(ctx, c.dir, c.env, os.Geteuid(), append([]string{"ctr", "--address", c.path("containerd.sock")}, args...)...)
}

func (c *containerd) run(ctx context.Context) error {
	c.count++
	_, err := c.ctr(ctx, "run", "--rm", "--snapshotter", c.snapshotter, engineImageName, fmt.Sprintf("bench%d", c.count), "/bin/true")
	return err
}

func (c *containerd) build(context.Context, *Env) error {
	return errors.New("containerd builds nothing")
}

func (c *containerd) load(ctx context.Context, e *Env) error {
	if _, err := c.ctr(ctx, "image", "rm", "--sync", engineImageName); err != nil {
		return err
	}
	return e.Measure(func() error {
		_, err := c.ctr(ctx, "image", "import", "--snapshotter", c.snapshotter, c.image)
		return err
	})
}

// close ends the daemons, the last one first.
func (c *containerd) close() error {
	for len(c.daemons) > 0 {
		d := c.daemons[len(c.daemons)-1]
		c.daemons = c.daemons[:len(c.daemons)-1]
		_ = d.cmd.Process.Signal(unix.SIGTERM) // it may have ended
		select {
		case <-d.ended:
		case <-time.After(stopTimeout):
			_ = d.cmd.Process.Kill()
			<-d.ended
		}
	}
	return detachBelow(c.dir)
}
