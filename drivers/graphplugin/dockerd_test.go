package graphplugin

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"plyfs/drivers/all"
	"plyfs/internal/testenv"
)

// dockerd speaks to a plugin as dockerd 20.10 does: POST, no Content-Type, empty bodies where there is nothing to say, streams
// in chunks.
type dockerd struct {
	*testing.T
	home   string
	socket string
	client *http.Client
}

func newDockerd(t *testing.T, socket, home string) *dockerd {
	t.Helper()
	d := &dockerd{T: t, home: home, socket: socket}
	d.client = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	t.Cleanup(d.client.CloseIdleConnections)
	return d
}

// post sends a request and returns the answer, whatever its status.
func (d *dockerd) post(path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(d.Context(), http.MethodPost, "http://plugin/"+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/vnd.docker.plugins.v1.2+json")
	return d.client.Do(req)
}

// send posts and returns the body of the answer. Any status but 200 is an error with what the answer says.
func (d *dockerd) send(path string, body io.Reader) ([]byte, error) {
	resp, err := d.post(path, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d: %s", resp.StatusCode, b)
	}
	return b, nil
}

// answer is what dockerd reads of an answer.
type answer struct {
	Err          string
	Implements   []string
	Capabilities struct{ ReproducesExactDiffs bool }
	Dir          string
	Exists       bool
	Status       [][2]string
	Metadata     map[string]string
	Changes      []struct {
		Path string
		Kind int
	}
	Size int64
}

func (d *dockerd) try(method string, args any) (a answer, err error) {
	var body io.Reader
	if args != nil {
		b, err := json.Marshal(args)
		if err != nil {
			return a, err
		}
		body = bytes.NewReader(append(b, '\n'))
	}
	b, err := d.send(method, body)
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return a, fmt.Errorf("%s: %w: %s", method, err, b)
	}
	if a.Err != "" {
		return a, errors.New(a.Err)
	}
	return a, nil
}

func (d *dockerd) call(method string, args any) answer {
	d.Helper()
	a, err := d.try(method, args)
	if err != nil {
		d.Fatalf("%s %v: %v", method, args, err)
	}
	return a
}

// args are the arguments of most calls, of which empty ones are left out.
type args struct {
	ID         string            `json:",omitempty"`
	Parent     string            `json:",omitempty"`
	MountLabel string            `json:",omitempty"`
	StorageOpt map[string]string `json:",omitempty"`
}

// initArgs are those of Init.
type initArgs struct {
	Home    string
	Opts    []string
	UIDMaps []idRange
	GIDMaps []idRange
}

// start is what dockerd does first.
func (d *dockerd) start(opts ...string) {
	d.Helper()
	if a := d.call("Plugin.Activate", nil); len(a.Implements) != 1 || a.Implements[0] != "GraphDriver" {
		d.Fatalf("the plugin implements %q", a.Implements)
	}
	d.call("GraphDriver.Init", initArgs{Home: d.home, Opts: opts})
	if d.call("GraphDriver.Capabilities", args{}).Capabilities.ReproducesExactDiffs {
		d.Error("the plugin says that it keeps streams")
	}
}

// apply sends a stream in chunks.
func (d *dockerd) apply(id, parent string, stream io.Reader) (size int64, err error) {
	b, err := d.send("GraphDriver.ApplyDiff?id="+id+"&parent="+parent, struct{ io.Reader }{stream})
	if err != nil {
		return 0, err
	}
	var a answer
	if err := json.Unmarshal(b, &a); err != nil {
		return 0, err
	}
	if a.Err != "" {
		return 0, errors.New(a.Err)
	}
	return a.Size, nil
}

// layer makes an image layer of files, by path.
func (d *dockerd) layer(id, parent string, files map[string]string) {
	d.Helper()
	d.call("GraphDriver.Create", args{ID: id, Parent: parent})
	var size int64
	for _, content := range files {
		size += int64(len(content))
	}
	got, err := d.apply(id, parent, bytes.NewReader(archive(d, files)))
	must(d, err)
	want(d, "the size of layer "+id, got, size)
}

// container makes a container's layers, as docker create does.
func (d *dockerd) container(id, image string) {
	d.Helper()
	d.call("GraphDriver.CreateReadWrite", args{ID: id + "-init", Parent: image})
	d.write(id+"-init", "etc/hostname", "")
	d.call("GraphDriver.CreateReadWrite", args{ID: id, Parent: id + "-init"})
	d.write(id, "", "")
}

func (d *dockerd) get(id string) string {
	d.Helper()
	dir := d.call("GraphDriver.Get", args{ID: id}).Dir
	if !filepath.IsAbs(dir) {
		d.Fatalf("the root of %s is %q", id, dir)
	}
	return dir
}

func (d *dockerd) put(id string) {
	d.Helper()
	d.call("GraphDriver.Put", args{ID: id})
}

// write makes a file in a layer, or with no name just mounts it.
func (d *dockerd) write(id, name, content string) {
	d.Helper()
	dir := d.get(id)
	if name != "" {
		path := filepath.Join(dir, name)
		must(d, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644))
	}
	d.put(id)
}

// read is the content of a file in a layer.
func (d *dockerd) read(id, name string) string {
	d.Helper()
	dir := d.get(id)
	defer d.put(id)
	b, err := os.ReadFile(filepath.Join(dir, name))
	must(d, err)
	return string(b)
}

// diff reads a difference, as its members by name.
func (d *dockerd) diff(id, parent string) map[string]*tar.Header {
	d.Helper()
	b, err := json.Marshal(args{ID: id, Parent: parent})
	must(d, err)
	stream, err := d.send("GraphDriver.Diff", bytes.NewReader(b))
	must(d, err)
	members := make(map[string]*tar.Header)
	for r := tar.NewReader(bytes.NewReader(stream)); ; {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			return members
		}
		must(d, err)
		members[strings.TrimSuffix(hdr.Name, "/")] = hdr
	}
}

// archive is a layer of files, the directories of which it names.
func archive(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}))
		_, err := io.WriteString(w, content)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// config is the one of a plugin within the test's process.
func config(t *testing.T, driver string) Config {
	t.Helper()
	return Config{
		State: filepath.Join(testenv.Scratch(t), "state"), Drivers: all.Registry(), Driver: driver,
		Defaults: map[string]map[string]string{"plyfs": {"mount_program": testenv.Binary(t)}},
	}
}

// serve runs a plugin in the test's process until stop is called, or the test ends.
func serve(t *testing.T, c Config) (socket string, stop func()) {
	t.Helper()
	socket = filepath.Join(testenv.Scratch(t), "plugin.sock")
	p, err := New(t.Context(), c)
	must(t, err)
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx, l) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		must(t, <-ended, p.Close())
	}
	t.Cleanup(stop)
	return socket, stop
}

// process is a plugin in a process of its own.
type process struct {
	*testing.T
	socket string
	args   []string
	cmd    *exec.Cmd
	log    *bytes.Buffer
}

func newProcess(t *testing.T, driver string) *process {
	t.Helper()
	dir := testenv.Scratch(t)
	p := &process{T: t, socket: filepath.Join(dir, "plyfs.sock")}
	// Not that of the machine.
	conf := filepath.Join(dir, "config.toml")
	must(t, os.WriteFile(conf, nil, 0o600))
	p.args = []string{
		"graphplugin", "--config", conf, "--address", p.socket, "--state-dir", filepath.Join(dir, "state"), "--driver", driver, "--log-level", "debug",
	}
	p.start()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("the plugin's log:\n%s", p.log)
		}
	})
	return p
}

// start starts the plugin and waits until it answers.
func (p *process) start() {
	p.Helper()
	p.cmd, p.log = exec.Command(testenv.Binary(p), p.args...), &bytes.Buffer{}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	// The servers of mounts have the log open, too.
	p.cmd.WaitDelay = time.Millisecond
	must(p, p.cmd.Start())
	for range 1000 {
		if conn, err := net.Dial("unix", p.socket); err == nil {
			conn.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.kill()
	p.Fatalf("the plugin does not listen:\n%s", p.log)
}

// kill ends the plugin at once.
func (p *process) kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	p.cmd = nil
}

// drivers under test.
func underTest() []string { return []string{"plyfs", "overlay2", "vfs"} }

// eachDriver runs a test on a store of each driver, and checks that nothing is left mounted.
func eachDriver(t *testing.T, test func(t *testing.T, driver string)) {
	for _, name := range underTest() {
		t.Run(name, func(t *testing.T) { test(t, name) })
	}
}

// mountedBelow lists what is mounted beneath a directory.
func mountedBelow(t testing.TB, dir string) (points []string) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	return points
}

// wantUnmounted fails the test if something is mounted beneath a directory.
func wantUnmounted(t testing.TB, dir string) {
	t.Helper()
	if left := mountedBelow(t, dir); len(left) > 0 {
		t.Errorf("left mounted: %q", left)
	}
}

// hasMount says whether a driver mounts what it shows.
func hasMount(driver string) bool { return driver != "vfs" }
