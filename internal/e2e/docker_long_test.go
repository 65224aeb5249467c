//go:build engines && long

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"plyfs/internal/e2e/listing"
	"plyfs/internal/testenv"
)

// all runs the whole suite.
func (d *dockerTest) all(t *testing.T) {
	t.Helper()
	d.load(t)
	t.Run("container", d.container)
	t.Run("commit with an open file", d.commitOpen)
	t.Run("build", d.build)
	t.Run("BuildKit", d.buildKit)
	t.Run("save", d.save)
	t.Run("export", d.export)
	if d.plugin != nil {
		t.Run("plugin killed", d.pluginKilled)
	}
	t.Run("dockerd killed", d.dockerdKilled)
	d.clean(t)
}

// TestDockerPluginDrivers runs the suite on the plugin with each driver that works here.
func TestDockerPluginDrivers(t *testing.T) {
	for _, driver := range []string{"plyfs", "overlay2", "vfs"} {
		t.Run(driver, func(t *testing.T) { newDocker(t, "plyfs", withPlugin(driver)).all(t) })
	}
	t.Run("btrfs", func(t *testing.T) {
		newDocker(t, "plyfs", func(d *dockerTest) {
			d.data = testenv.Btrfs(t, 4<<30)
			withPlugin("btrfs")(d)
		}).all(t)
	})
}

// TestDockerDropInAll runs the suite on dockerd's own driver fuse-overlayfs with plyfs under that name.
func TestDockerDropInAll(t *testing.T) { newDocker(t, "fuse-overlayfs", nil).all(t) }

// TestDockerQuota bounds a container, and all of them.
func TestDockerQuota(t *testing.T) {
	d := newDocker(t, "plyfs", func(d *dockerTest) {
		withPlugin("plyfs")(d)
		d.flags = append(d.flags, "--storage-opt", "plyfs.size=64m")
	})
	d.load(t)
	const fill = "dd if=/dev/zero of=/data/big bs=1048576 count=32 2>/dev/null && echo whole || echo cut"
	for size, want := range map[string]string{"16m": "cut\n", "48m": "whole\n", "": "whole\n"} {
		args := []string{"run", "--rm", "--network", "none"}
		if size != "" {
			args = append(args, "--storage-opt", "size="+size)
		}
		expect(t, "32 MiB in a container of size "+size, d.docker(t, append(args, imageName, "sh", "-c", fill)...), want)
	}
	if out, err := d.try(d.client, "create", "--storage-opt", "colour=red", imageName); err == nil {
		t.Errorf("an unknown option is accepted: %s", out)
	}
	d.clean(t)
}

// TestDockerLiveRestore kills a dockerd whose containers are to survive that, and the plugin after it.
func TestDockerLiveRestore(t *testing.T) {
	for _, driver := range []string{"plyfs", "overlay2"} {
		t.Run(driver, func(t *testing.T) {
			d := newDocker(t, "plyfs", func(d *dockerTest) {
				withPlugin(driver)(d)
				d.flags = append(d.flags, "--live-restore")
			})
			d.load(t)
			next := d.beats(t)
			next()
			d.killDaemon(t)
			next()
			d.plugin.end(t, syscall.SIGKILL)
			next()
			d.startPlugin(t)
			d.startDaemon(t)
			next()
			d.docker(t, "exec", "box", "sh", "-ec", "echo exec >/data/exec")
			d.docker(t, "commit", "box", "outlived")
			expect(t, "a file in the commit", d.docker(t, "run", "--rm", "--network", "none", "outlived", "cat", "/data/exec"), "exec\n")
			next()
			d.docker(t, "rm", "-f", "box")
			d.docker(t, "rmi", "-f", "outlived")
			d.clean(t)
		})
	}
}

// TestDockerUserns runs dockerd with --userns-remap: root of containers is another user of the machine.
func TestDockerUserns(t *testing.T) {
	for _, driver := range []string{"plyfs", "overlay2"} {
		t.Run(driver, func(t *testing.T) {
			d := newDocker(t, "plyfs", func(d *dockerTest) {
				withPlugin(driver)(d)
				d.flags = append(d.flags, "--userns-remap", userName)
				d.capless = true
			})
			d.load(t)
			d.start(t, imageName, "sleep", "1000")
			d.docker(t, "exec", "box", "sh", "-ec", work+"\necho mine >/data/mine")
			pid := strings.TrimSpace(d.docker(t, "inspect", "-f", "{{.State.Pid}}", "box"))
			info, err := os.Stat("/proc/" + pid + "/root/data/mine")
			if err != nil {
				t.Fatal(err)
			}
			if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != subIDs {
				t.Errorf("on the machine a file of root of the container belongs to %+v, want %d", info.Sys(), subIDs)
			}
			live := d.live(t)
			d.docker(t, "commit", "box", "committed")
			d.check(t, "the committed image", live, d.list(t, "committed"))
			d.docker(t, "rm", "-f", "box")
			d.docker(t, "rmi", "-f", "committed")
			t.Run("build", d.build)
			t.Run("save", d.save)
			d.clean(t)
		})
	}
}

// managedConfig is the description of plyfs as a managed plugin, as in docs/docker.md.
func managedConfig(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile("../../docs/docker.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```json\n")
	config, _, ok := strings.Cut(rest, "```\n")
	if !ok || !json.Valid([]byte(config)) {
		t.Fatal("docs/docker.md has no block of JSON with the plugin's configuration")
	}
	return []byte(config)
}

// TestDockerManagedPlugin makes plyfs a plugin that dockerd itself runs, in a container of its own.
func TestDockerManagedPlugin(t *testing.T) {
	d := newDocker(t, "vfs", nil)
	rootfs := d.path("managed/rootfs")
	for _, dir := range []string{"bin", "run", "tmp", "mnt/state"} {
		if err := os.MkdirAll(filepath.Join(rootfs, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"plyfs", "plyfs-mount", "plyfsd"} {
		from := filepath.Join(filepath.Dir(testenv.Binary(t)), name)
		if out, err := exec.Command("cp", from, filepath.Join(rootfs, "bin", name)).CombinedOutput(); err != nil {
			t.Fatalf("copy %s: %v: %s", from, err, out)
		}
	}
	if err := os.WriteFile(d.path("managed/config.json"), managedConfig(t), 0o644); err != nil {
		t.Fatal(err)
	}
	d.docker(t, "plugin", "create", "me/plyfs", d.path("managed"))
	d.docker(t, "plugin", "enable", "me/plyfs")
	d.daemon.end(t, syscall.SIGTERM)
	d.driver = "me/plyfs"
	d.startDaemon(t)
	d.load(t)
	t.Run("container", d.container)
	t.Run("commit with an open file", d.commitOpen)
	t.Run("build", d.build)
	t.Run("dockerd restarted", func(t *testing.T) {
		d.daemon.end(t, syscall.SIGTERM)
		d.startDaemon(t)
		d.check(t, "the image", d.want, d.list(t, imageName))
	})
	d.clean(t)
}

// TestDockerRootless runs dockerd as a user, with the plugin beside it in the namespaces of rootlesskit, as docs/docker.md says.
func TestDockerRootless(t *testing.T) {
	for _, driver := range []string{"plyfs", "overlay2"} {
		t.Run(driver, func(t *testing.T) { rootless(t, "plyfs", driver) })
	}
	t.Run("fuse-overlayfs", func(t *testing.T) { rootless(t, "fuse-overlayfs", "") })
}

// rootlessScript is the dockerd that Debian's dockerd-rootless.sh finds on PATH.
const rootlessScript = `#!/bin/sh
setpriv --pdeathsig TERM %s/plyfs graphplugin --driver %s --log-level debug &
exec /usr/sbin/dockerd "$@"
`

func rootless(t *testing.T, storage, driver string) {
	e := newEngine(t, userID)
	e.clean = nil
	im := engineImage(t)
	im.writeDocker(t, e.path("docker.tar"), imageName)
	d := &dockerTest{engine: e, top: t, driver: storage, data: e.path("home/data"), client: dockerClient}
	d.want, d.dump = listing.Lines(im.entries("data")), e.treedump()+":/treedump:ro"
	bin, err := filepath.Abs(filepath.Dir(testenv.Binary(t)))
	if err != nil {
		t.Fatal(err)
	}
	if storage == "plyfs" {
		if err := os.WriteFile(e.path("bin/dockerd"), fmt.Appendf(nil, rootlessScript, bin, driver), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	e.env = append(e.env, "PATH="+e.path("bin")+":/usr/sbin:/sbin:"+os.Getenv("PATH"), "DOCKER_HOST=unix://"+e.path("xdg/docker.sock"),
		"DOCKER_BUILDKIT=0", "DOCKERD_ROOTLESS_ROOTLESSKIT_NET=host", "DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER=none",
		"DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS=--state-dir="+e.path("xdg/rootlesskit"))
	t.Cleanup(func() { d.checkEmpty(t) })
	d.daemon = e.launch(t, "dockerd", "/usr/share/docker.io/contrib/dockerd-rootless.sh", "--data-root", d.data, "--experimental",
		"--storage-driver", storage, "--iptables=false", "--ip6tables=false", "--bridge=none", "--ip-forward=false", "--ip-masq=false",
		"--userland-proxy=false")
	d.daemon.wait(t, func() error {
		_, err := d.try(d.client, "version")
		return err
	})
	expect(t, "the storage driver", d.docker(t, "info", "--format", "{{.Driver}}"), storage+"\n")
	d.load(t)
	t.Run("container", d.container)
	t.Run("commit with an open file", d.commitOpen)
	t.Run("build", d.build)
	t.Run("save", d.save)
	d.clean(t)
}
