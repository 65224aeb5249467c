package graphplugin

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/testenv"
)

// A plugin that is killed and started again knows what dockerd said, and what is mounted; what runs in a mount runs on.
func TestKilled(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver string) {
		p := newProcess(t, driver)
		d := newDockerd(t, p.socket, filepath.Join(testenv.Scratch(t), "home"))
		d.start()
		d.layer("image", "", map[string]string{"etc/f": "x"})
		d.container("c", "image")
		dir := d.get("c")
		want(t, "the second Get", d.get("c"), dir)
		open, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_RDWR, 0o644)
		must(t, err)
		defer open.Close()

		p.kill()
		_, err = open.WriteString("while there was no plugin")
		must(t, err)
		if _, err := d.try("GraphDriver.Exists", args{ID: "c"}); err == nil {
			t.Fatal("a plugin that was killed answers")
		}
		p.start()
		must(t, open.Close())
		want(t, "the third Get", d.get("c"), dir)
		want(t, "the file that was written meanwhile", d.read("c", "log"), "while there was no plugin")
		for range 3 {
			if mounts := mountedBelow(t, d.home); hasMount(driver) && len(mounts) != 1 {
				t.Errorf("mounted are %q, want the container", mounts)
			}
			d.put("c")
		}
		wantUnmounted(t, d.home)

		// Killed while nothing is mounted, and ended as systemd does.
		d.get("image")
		must(t, p.cmd.Process.Signal(syscall.SIGTERM))
		if err := p.cmd.Wait(); err != nil && !strings.Contains(err.Error(), "WaitDelay") {
			t.Errorf("the end by SIGTERM: %v", err)
		}
		if _, err := os.Stat(p.socket); err == nil {
			t.Error("the socket is left")
		}
		p.start()
		d.put("image")
		for _, id := range []string{"c", "c-init", "image"} {
			d.call("GraphDriver.Remove", args{ID: id})
		}
		wantUnmounted(t, d.home)
	})
}

// Killed at any moment of a container's creation, mount and removal, the plugin that takes over finishes what dockerd repeats.
func TestKilledAtAnyCall(t *testing.T) {
	p := newProcess(t, "overlay2")
	d := newDockerd(t, p.socket, filepath.Join(testenv.Scratch(t), "home"))
	d.start()
	d.layer("image", "", map[string]string{"etc/f": "x"})
	steps := []struct {
		method string
		args   args
	}{
		{"GraphDriver.CreateReadWrite", args{ID: "c", Parent: "image"}},
		{"GraphDriver.Create", args{ID: "l", Parent: "image"}},
		{"GraphDriver.Get", args{ID: "l"}},
		{"GraphDriver.Get", args{ID: "c"}},
		{"GraphDriver.Changes", args{ID: "c", Parent: "image"}},
		{"GraphDriver.Remove", args{ID: "l"}},
		{"GraphDriver.Remove", args{ID: "c"}},
	}
	for i, s := range steps {
		done := make(chan struct{})
		go func() {
			defer close(done)
			// Whether this one is answered depends on which of the two is faster.
			_, _ = d.try(s.method, s.args)
		}()
		time.Sleep(time.Duration(i) * 300 * time.Microsecond)
		p.kill()
		<-done
		p.start()
		if _, err := d.try(s.method, s.args); err != nil {
			t.Errorf("repeated after a kill: %s %v: %v", s.method, s.args, err)
		}
	}
	want(t, "existence of what was removed", d.call("GraphDriver.Exists", args{ID: "c"}).Exists, false)
	wantUnmounted(t, d.home)
}

// Two plugins do not share a state, or a home.
func TestOnePluginAtATime(t *testing.T) {
	p := newProcess(t, "vfs")
	d := newDockerd(t, p.socket, filepath.Join(testenv.Scratch(t), "home"))
	d.start()
	_, err := New(t.Context(), Config{State: filepath.Join(filepath.Dir(p.socket), "state")})
	wantErr(t, "another plugin with the same state", err, drivers.ErrInUse.Error(), "another")
	socket, _ := serve(t, config(t, "vfs"))
	_, err = newDockerd(t, socket, d.home).try("GraphDriver.Init", initArgs{Home: d.home})
	wantErr(t, "another plugin with the same home", err, drivers.ErrInUse.Error(), d.home)
}

// A state that can't be read is an error that names the way out; a store that can't be opened at first is opened later.
func TestDamagedState(t *testing.T) {
	c := config(t, "vfs")
	socket, stop := serve(t, c)
	d := newDockerd(t, socket, filepath.Join(testenv.Scratch(t), "home"))
	d.start()
	d.layer("image", "", map[string]string{"f": "x"})
	stop()
	// The disk with the layers is not mounted yet.
	must(t, os.Rename(d.home, d.home+".away"), os.WriteFile(d.home, nil, 0o600))
	socket, stop = serve(t, c)
	d = newDockerd(t, socket, d.home)
	_, err := d.try("GraphDriver.Exists", args{ID: "image"})
	wantErr(t, "a call without the store", err, d.home)
	must(t, os.Remove(d.home), os.Rename(d.home+".away", d.home))
	want(t, "existence, once the store is there", d.call("GraphDriver.Exists", args{ID: "image"}).Exists, true)
	stop()
	must(t, os.WriteFile(filepath.Join(c.State, "init.json"), []byte(`{"Home":`), 0o600))
	_, err = New(t.Context(), c)
	wantErr(t, "a torn state", err, drivers.ErrDamaged.Error(), "init.json", "restart dockerd")
}

// A dockerd in another mount namespace is told that it does not see what is mounted, unless it does.
func TestMountNamespaces(t *testing.T) {
	p := newProcess(t, "overlay2")
	home := filepath.Join(testenv.Scratch(t), "home")
	d := newDockerd(t, p.socket, home)
	d.start()
	d.layer("image", "", map[string]string{"f": "x"})
	d.call("GraphDriver.CreateReadWrite", args{ID: "c", Parent: "image"})

	out := fetchElsewhere(t, p.socket, "private")
	if !strings.Contains(out, "another mount namespace") || !strings.Contains(out, "shared") {
		t.Errorf("from a namespace that does not see the mount: %s", out)
	}
	wantUnmounted(t, home)
	// Where mounts arrive, all is well.
	must(t, unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""))
	defer func() { must(t, unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")) }()
	if out := fetchElsewhere(t, p.socket, "slave"); !strings.Contains(out, `"Dir":"`+home) {
		t.Errorf("from a namespace that sees the mount: %s", out)
	}
	d.put("c")
	wantUnmounted(t, home)
}

// fetchElsewhere calls Get from a process in a mount namespace of its own.
func fetchElsewhere(t *testing.T, socket, propagation string) string {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command("unshare", "--mount", "--propagation", propagation, self)
	cmd.Env = append(os.Environ(), envElsewhere+"="+socket)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out)
}

// envElsewhere is the socket for getElsewhere, which TestMain calls.
const envElsewhere = "PLYFS_TEST_GRAPHPLUGIN_SOCKET"

// getElsewhere is the process in the other namespace; it returns the exit code.
func getElsewhere(socket string) int {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	resp, err := client.Post("http://plugin/GraphDriver.Get", "", strings.NewReader(`{"ID":"c"}`))
	if err == nil {
		defer resp.Body.Close()
		_, err = io.Copy(os.Stdout, resp.Body)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
