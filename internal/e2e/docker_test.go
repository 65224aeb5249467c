//go:build engines && docker

package e2e

import (
	"bytes"
	"context"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"plyfs/internal/e2e/listing"
)

// TestDocker runs a dockerd whose graph driver fuse-overlayfs finds plyfs under that name on PATH.
func TestDocker(t *testing.T) {
	e := newEngine(t, 0)
	e.clean = nil
	startDocker(t, e)
	im := engineImage(t)
	im.writeDocker(t, e.path("docker.tar"), imageName)
	d := &dockerTest{engine: e, want: listing.Lines(im.entries("data")), dump: e.treedump(t) + ":/treedump:ro"}

	expect(t, "the graph driver", e.run(t, "docker", "info", "--format", "{{.Driver}}"), "fuse-overlayfs\n")
	e.run(t, "docker", "load", "-q", "-i", e.path("docker.tar"))
	checkLines(t, "the image", d.want, d.list(t, imageName))
	t.Run("container", d.container)
	t.Run("commit with an open file", d.commitOpen)
	t.Run("build", d.build)
	t.Run("save", d.save)
	e.run(t, "docker", "rmi", "-f", imageName)
}

// startDocker starts dockerd without networks and waits until it answers. It is ended with the test.
func startDocker(t *testing.T, e *engine) {
	t.Helper()
	if err := os.WriteFile(e.path("daemon.json"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	e.env = append(e.env, "PATH="+e.path("bin")+":"+os.Getenv("PATH"), "DOCKER_HOST=unix://"+e.path("docker.sock"),
		"DOCKER_BUILDKIT=0")
	cmd := e.command(context.Background(), "dockerd", "--config-file", e.path("daemon.json"), "--data-root", e.path("docker"),
		"--exec-root", e.path("docker-run"), "--pidfile", e.path("docker.pid"), "-H", "unix://"+e.path("docker.sock"),
		"--storage-driver", "fuse-overlayfs", "--iptables=false", "--ip6tables=false", "--bridge=none", "--ip-forward=false",
		"--ip-masq=false", "--userland-proxy=false", "--oom-score-adjust=0")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatalf("dockerd (package docker.io): %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			t.Errorf("dockerd does not end: %s", tail(log.String(), 20))
		}
		if t.Failed() {
			t.Logf("dockerd's log ends:\n%s", tail(log.String(), 30))
		}
	})
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, err := e.try("docker", "version")
		if err == nil {
			return
		}
		select {
		case err := <-done:
			done <- err
			t.Fatalf("dockerd ended: %v\n%s", err, tail(log.String(), 20))
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("dockerd does not answer: %v", err)
		}
	}
}

type dockerTest struct {
	*engine
	want []string
	dump string
}

// start runs a container in the background.
func (d *dockerTest) start(t *testing.T, image string, command ...string) {
	t.Helper()
	args := []string{"docker", "run", "-d", "--network", "none", "--name", "box", "-v", d.dump, image}
	d.run(t, append(args, command...)...)
}

func (d *dockerTest) list(t *testing.T, image string) []string {
	t.Helper()
	out := d.run(t, "docker", "run", "--rm", "--network", "none", "-v", d.dump, image, "/treedump", "/", "data")
	return strings.Split(strings.TrimSuffix(out, "\n"), "\n")
}

// container is run, exec, diff, cp, commit, stop, start and rm.
func (d *dockerTest) container(t *testing.T) {
	d.start(t, imageName, "sleep", "1000")
	d.run(t, "docker", "exec", "box", "sh", "-ec", work)
	diff := d.run(t, "docker", "diff", "box")
	for _, want := range []string{"A /data/made\n", "D /data/f40\n", "C /data/top\n", "D /data/op/after33\n", "A /data/op/again\n"} {
		if !strings.Contains(diff, want) {
			t.Errorf("docker diff does not show %q: %s", want, diff)
		}
	}
	content := strings.Repeat("copied in\n", 30000)
	if err := os.WriteFile(d.path("in"), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	d.run(t, "docker", "cp", d.path("in"), "box:/data/shared/in")
	d.run(t, "docker", "cp", "box:/data/shared/in", d.path("out"))
	if text, err := os.ReadFile(d.path("out")); err != nil || string(text) != content {
		t.Errorf("docker cp in and out again: %d bytes, %v", len(text), err)
	}
	live := strings.Split(strings.TrimSuffix(d.run(t, "docker", "exec", "box", "/treedump", "/", "data"), "\n"), "\n")
	d.run(t, "docker", "commit", "box", "committed")
	checkLines(t, "the committed image", live, d.list(t, "committed"))
	d.run(t, "docker", "stop", "-t", "0", "box")
	d.run(t, "docker", "start", "box")
	checkLines(t, "the container, started again,", live,
		strings.Split(strings.TrimSuffix(d.run(t, "docker", "exec", "box", "/treedump", "/", "data"), "\n"), "\n"))
	d.run(t, "docker", "rm", "-f", "box")
	d.run(t, "docker", "rmi", "-f", "committed")
}

// commitOpen commits a running container that has a file open for writing.
func (d *dockerTest) commitOpen(t *testing.T) {
	d.start(t, imageName, "sh", "-c",
		"exec 3>/data/dirty; dd if=/dev/zero bs=65536 count=10 >&3 2>/dev/null; echo ready; sleep 1000")
	for i := 0; !strings.Contains(d.run(t, "docker", "logs", "box"), "ready"); i++ {
		if i > 100 {
			t.Fatal("the container does not start")
		}
	}
	d.run(t, "docker", "commit", "box", "dirty")
	expect(t, "size of a dirty file in the commit",
		d.run(t, "docker", "run", "--rm", "--network", "none", "dirty", "stat", "-c", "%s", "/data/dirty"), "655360\n")
	d.run(t, "docker", "rm", "-f", "box")
	d.run(t, "docker", "rmi", "-f", "dirty")
}

// build runs a Dockerfile with the classic builder.
func (d *dockerTest) build(t *testing.T) {
	context := d.path("context")
	if err := os.Mkdir(context, 0o755); err != nil {
		t.Fatal(err)
	}
	dockerfile := "FROM " + imageName + `
RUN rm -r /data/shared && mkdir /data/shared && echo one >/data/shared/one
RUN mv /data/deep /data/deeper && echo x >>/data/top
COPY file /data/copied
RUN rm /data/copied /data/f40
`
	for name, text := range map[string]string{"Dockerfile": dockerfile, "file": "copied\n"} {
		if err := os.WriteFile(context+"/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d.run(t, "docker", "build", "--network", "none", "-q", "-t", "built", context)
	got := d.run(t, "docker", "run", "--rm", "--network", "none", "built", "sh", "-c",
		"ls /data/shared; cat /data/top; ls /data/deeper/a/b; ls /data/copied /data/f40 /data/deep 2>&1 | wc -l")
	expect(t, "the built image", got, "one\n40\nx\nstays\n3\n")
	d.run(t, "docker", "rmi", "-f", "built")
}

// save takes the image out and in again.
func (d *dockerTest) save(t *testing.T) {
	d.run(t, "docker", "save", "-o", d.path("saved.tar"), imageName)
	d.run(t, "docker", "rmi", "-f", imageName)
	d.run(t, "docker", "load", "-q", "-i", d.path("saved.tar"))
	checkLines(t, "the image after save and load", d.want, d.list(t, imageName))
}
