//go:build engines

package e2e

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// check compares what a container shows.
func (d *dockerTest) check(t *testing.T, what string, want, got []string) {
	t.Helper()
	if d.capless {
		want, got = capless(want), capless(got)
	}
	checkLines(t, what, want, got)
}

// load takes the image in and compares what a container shows of it.
func (d *dockerTest) load(t *testing.T) {
	t.Helper()
	d.docker(t, "load", "-q", "-i", d.path("docker.tar"))
	d.check(t, "the image", d.want, d.list(t, imageName))
}

// clean removes the image.
func (d *dockerTest) clean(t *testing.T) {
	t.Helper()
	d.docker(t, "rmi", "-f", imageName)
	if left := d.docker(t, "images", "-aq") + d.docker(t, "ps", "-aq"); left != "" {
		t.Errorf("left are images or containers: %s", left)
	}
}

// start runs a container in the background.
func (d *dockerTest) start(t *testing.T, image string, command ...string) {
	t.Helper()
	args := []string{"run", "-d", "--network", "none", "--name", "box", "-v", d.dump, image}
	d.docker(t, append(args, command...)...)
}

func (d *dockerTest) list(t *testing.T, image string) []string {
	t.Helper()
	out := d.docker(t, "run", "--rm", "--network", "none", "-v", d.dump, image, "/treedump", "/", "data")
	return strings.Split(strings.TrimSuffix(out, "\n"), "\n")
}

// live lists what the container that runs shows.
func (d *dockerTest) live(t *testing.T) []string {
	t.Helper()
	return strings.Split(strings.TrimSuffix(d.docker(t, "exec", "box", "/treedump", "/", "data"), "\n"), "\n")
}

// container is run, exec, diff, cp, commit, stop, start and rm.
func (d *dockerTest) container(t *testing.T) {
	d.start(t, imageName, "sleep", "1000")
	d.docker(t, "exec", "box", "sh", "-ec", work)
	diff := d.docker(t, "diff", "box")
	for _, want := range []string{"A /data/made\n", "D /data/f40\n", "C /data/top\n", "D /data/op/after33\n", "A /data/op/again\n"} {
		if !strings.Contains(diff, want) {
			t.Errorf("docker diff does not show %q: %s", want, diff)
		}
	}
	content := strings.Repeat("copied in\n", 30000)
	if err := os.WriteFile(d.path("in"), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	d.docker(t, "cp", d.path("in"), "box:/data/shared/in")
	d.docker(t, "cp", "box:/data/shared/in", d.path("out"))
	if text, err := os.ReadFile(d.path("out")); err != nil || string(text) != content {
		t.Errorf("docker cp in and out again: %d bytes, %v", len(text), err)
	}
	live := d.live(t)
	d.docker(t, "commit", "box", "committed")
	d.check(t, "the committed image", live, d.list(t, "committed"))
	d.docker(t, "stop", "-t", "0", "box")
	d.docker(t, "start", "box")
	d.check(t, "the container, started again,", live, d.live(t))
	d.docker(t, "rm", "-f", "box")
	d.docker(t, "rmi", "-f", "committed")
}

// commitOpen commits a running container that has a file open for writing.
func (d *dockerTest) commitOpen(t *testing.T) {
	d.start(t, imageName, "sh", "-c",
		"exec 3>/data/dirty; dd if=/dev/zero bs=65536 count=10 >&3 2>/dev/null; echo ready; sleep 1000")
	testenv.Eventually(t, "the container is ready", func() bool { return strings.Contains(d.docker(t, "logs", "box"), "ready") })
	d.docker(t, "commit", "box", "dirty")
	expect(t, "size of a dirty file in the commit",
		d.docker(t, "run", "--rm", "--network", "none", "dirty", "stat", "-c", "%s", "/data/dirty"), "655360\n")
	d.docker(t, "rm", "-f", "box")
	d.docker(t, "rmi", "-f", "dirty")
}

// build runs a Dockerfile with the classic builder.
func (d *dockerTest) build(t *testing.T) { d.buildWith(t) }

// buildKit runs it with BuildKit, which writes into layers on their way to become images.
func (d *dockerTest) buildKit(t *testing.T) {
	kit := *d
	copied := *d.engine
	kit.engine = &copied
	kit.env = append(copied.env, "DOCKER_BUILDKIT=1", "BUILDKIT_PROGRESS=plain")
	kit.buildWith(t)
	d.docker(t, "builder", "prune", "-af")
}

func (d *dockerTest) buildWith(t *testing.T) {
	context, err := os.MkdirTemp(d.dir, "context-")
	if err == nil {
		err = os.Chmod(context, 0o755)
	}
	if err != nil {
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
	d.docker(t, "build", "--network", "none", "-q", "-t", "built", context)
	got := d.docker(t, "run", "--rm", "--network", "none", "built", "sh", "-c",
		"ls /data/shared; cat /data/top; ls /data/deeper/a/b; ls /data/copied /data/f40 /data/deep 2>&1 | wc -l")
	expect(t, "the built image", got, "one\n40\nx\nstays\n3\n")
	d.docker(t, "rmi", "-f", "built")
}

// save takes the image out and in again.
func (d *dockerTest) save(t *testing.T) {
	d.docker(t, "save", "-o", d.path("saved.tar"), imageName)
	d.docker(t, "rmi", "-f", imageName)
	d.docker(t, "load", "-q", "-i", d.path("saved.tar"))
	d.check(t, "the image after save and load", d.want, d.list(t, imageName))
}

// export takes a container out, and in again as an image of one layer.
func (d *dockerTest) export(t *testing.T) {
	d.docker(t, "create", "--network", "none", "--name", "box", imageName)
	d.docker(t, "export", "-o", d.path("flat.tar"), "box")
	d.docker(t, "import", d.path("flat.tar"), "flat")
	d.check(t, "the imported image", userless(d.want), userless(d.list(t, "flat")))
	d.docker(t, "rm", "box")
	d.docker(t, "rmi", "flat")
}

// userless strips user attributes, which docker export leaves out.
func userless(lines []string) []string {
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i], _, _ = strings.Cut(l, " user.")
	}
	return out
}

// beats runs a container that writes a line now and then, and returns what waits for the next one.
func (d *dockerTest) beats(t *testing.T) (next func()) {
	t.Helper()
	d.docker(t, "run", "-d", "--network", "none", "--name", "box", "--stop-signal", "KILL", imageName,
		"sh", "-c", "while echo beat >>/data/top; do sleep 0.1; done; echo lost >/data/lost")
	init := strings.TrimSpace(d.docker(t, "inspect", "-f", "{{.State.Pid}}", "box"))
	file := "/proc/" + init + "/root/data/top"
	return func() {
		t.Helper()
		var was string
		testenv.Eventually(t, "the container writes", func() bool {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatalf("the file of a running container: %v", err)
			}
			if was == "" {
				was = string(text)
			}
			return string(text) != was
		})
	}
}

// pluginKilled ends the plugin, in both ways, while a container runs; dockerd goes on with the next one.
func (d *dockerTest) pluginKilled(t *testing.T) {
	next := d.beats(t)
	next()
	for _, sig := range []unix.Signal{unix.SIGKILL, unix.SIGTERM} {
		d.plugin.end(t, sig)
		next()
		d.startPlugin(t)
		d.docker(t, "exec", "box", "sh", "-ec", "echo exec >/data/exec; rm /data/exec")
		next()
	}
	if diff := d.docker(t, "diff", "box"); diff != "C /data\nC /data/top\n" {
		t.Errorf("docker diff of a container that outlived its plugin: %s", diff)
	}
	d.docker(t, "commit", "box", "outlived")
	d.docker(t, "rm", "-f", "box")
	d.docker(t, "rmi", "-f", "outlived")
	d.check(t, "a new container", d.want, d.list(t, imageName))
	// A call meanwhile waits for the plugin.
	d.plugin.end(t, unix.SIGKILL)
	listed := make(chan error, 1)
	go func() {
		_, err := d.try(d.client, "run", "--rm", "--network", "none", imageName, "true")
		listed <- err
	}()
	d.startPlugin(t)
	if err := <-listed; err != nil {
		t.Errorf("a container that was started while there was no plugin: %v", err)
	}
}

// dockerdKilled restarts dockerd, then kills it, each time with a container that runs.
func (d *dockerTest) dockerdKilled(t *testing.T) {
	next := d.beats(t)
	next()
	d.daemon.end(t, unix.SIGTERM)
	d.startDaemon(t)
	lines := strings.Count(d.restarted(t), "beat\n")
	if lines == 0 {
		t.Error("a restart of dockerd lost what a container wrote")
	}
	d.killDaemon(t)
	d.startDaemon(t)
	if got := strings.Count(d.restarted(t), "beat\n"); got < lines {
		t.Errorf("a killed dockerd lost what a container wrote: %d lines of %d", got, lines)
	}
	d.check(t, "a new container", d.want, d.list(t, imageName))
	d.docker(t, "rm", "-f", "box")
}

// restarted starts the container again, and returns what it wrote before.
func (d *dockerTest) restarted(t *testing.T) string {
	t.Helper()
	d.docker(t, "start", "box")
	return d.docker(t, "exec", "box", "cat", "/data/top")
}
