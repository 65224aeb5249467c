//go:build packages

package packaging_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"

	"plyfs/internal/testenv"
)

// machine is a container that systemd runs, with this machine's programs and engines, and a system of its own to change.
type machine struct {
	// pid is that of its first process.
	pid string
}

// boot boots a machine, which goes with the test.
func boot(t *testing.T) *machine {
	t.Helper()
	group := newCgroup(t)
	script, err := filepath.Abs("testdata/boot.sh")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `echo $$ >"$0/cgroup.procs" && exec unshare -mpiun --cgroup --fork --kill-child sh "$1" "$2"`,
		group, script, testenv.Scratch(t))
	log, err := os.Create(filepath.Join(testenv.Scratch(t), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// systemd's end is that of all in its namespace; unshare, if it is killed first, leaves with it.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	m := &machine{}
	booted := func() error {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		if m.pid = strings.TrimSpace(string(children)); err != nil || m.pid == "" {
			return fmt.Errorf("no first process: %w", err)
		}
		out, err := m.command(t, "test \"$(readlink /proc/1/exe)\" = /usr/lib/systemd/systemd && systemctl is-system-running").CombinedOutput()
		if state := strings.TrimSpace(string(out)); state != "running" {
			return fmt.Errorf("%s, %w", state, err)
		}
		return nil
	}
	if err := eventually(t, time.Minute, booted); err != nil {
		text, _ := os.ReadFile(log.Name())
		t.Fatalf("systemd: %v\n%s", err, text)
	}
	return m
}

// newCgroup makes a group in the second version's hierarchy, where that is mounted.
func newCgroup(t *testing.T) string {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil || len(mounts) == 0 {
		t.Fatalf("no cgroup2 is mounted here, and systemd needs one: %v", err)
	}
	group, err := os.MkdirTemp(mounts[0].Mountpoint, "plyfs-test-")
	if err != nil {
		t.Fatal(err)
	}
	// The managers of users make groups beneath it.
	if err := os.Chmod(group, 0o755); err != nil {
		t.Error(err)
	}
	t.Cleanup(func() {
		err := eventually(t, 10*time.Second, func() error {
			var groups []string
			_ = filepath.WalkDir(group, func(path string, e os.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					groups = append(groups, path)
				}
				return nil
			})
			var errs []error
			for _, path := range slices.Backward(groups) {
				errs = append(errs, os.Remove(path))
			}
			return errors.Join(errs...)
		})
		if err != nil {
			t.Error(err)
		}
	})
	return group
}

// eventually calls a function until it returns no error, and returns the last one after some time.
func eventually(t *testing.T, within time.Duration, f func() error) error {
	t.Helper()
	for end := time.Now().Add(within); ; time.Sleep(100 * time.Millisecond) {
		if err := f(); err == nil || time.Now().After(end) {
			return err
		}
	}
}

// command prepares a script of root's in the machine.
func (m *machine) command(t *testing.T, script string) *exec.Cmd {
	t.Helper()
	return command(t, "nsenter", "-t", m.pid, "-a", "-r", "-w", "env", "-i", "HOME=/root", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LANG=C", "sh", "-ec", script)
}

// root runs a script of root's that must succeed, and returns what it printed.
func (m *machine) root(t *testing.T, script string) string {
	t.Helper()
	return m.must(t, m.command(t, script))
}

// machineUser is a plain user of the machine, with a service manager of its own.
const machineUser = "plyfsuser"

// user is the same as root for a script of the user's.
func (m *machine) user(t *testing.T, script string) string {
	t.Helper()
	as := `id=$(id -u ` + machineUser + `)
exec setpriv --reuid "$id" --regid "$id" --init-groups env -i HOME=/home/` + machineUser + ` USER=` + machineUser + ` LANG=C PATH="$PATH" \
	XDG_RUNTIME_DIR="/run/user/$id" DBUS_SESSION_BUS_ADDRESS="unix:path=/run/user/$id/bus" DOCKER_HOST="unix:///run/user/$id/docker.sock" \
	sh -ec "cd; $SCRIPT"`
	cmd := m.command(t, as)
	i := slices.Index(cmd.Args, "LANG=C")
	cmd.Args = slices.Insert(cmd.Args, i, "SCRIPT="+script)
	return m.must(t, cmd)
}

func (m *machine) must(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		journal, _ := m.command(t, "journalctl --no-pager -n 60 -o cat").CombinedOutput()
		t.Fatalf("%s: %v\n%s\nthe journal:\n%s", cmd.Args[len(cmd.Args)-1], err, out, journal)
	}
	return string(out)
}

// put writes a file in the machine.
func (m *machine) put(t *testing.T, path, text string) {
	t.Helper()
	m.root(t, "mkdir -p "+filepath.Dir(path))
	cmd := m.command(t, "cat >"+path)
	cmd.Stdin = strings.NewReader(text)
	m.must(t, cmd)
}

// ps finds the mounts that plyfs ps lists in the machine: ENGINE CONTAINER IMAGE.
func (m *machine) ps(t *testing.T) []string {
	t.Helper()
	var names []string
	for line := range strings.Lines(m.root(t, "plyfs ps --json")) {
		var mount struct{ Engine, Container, Image, State string }
		if err := json.Unmarshal([]byte(line), &mount); err != nil || mount.State != "ok" {
			t.Errorf("plyfs ps --json: %v: %s", err, line)
		}
		names = append(names, strings.Join([]string{mount.Engine, mount.Container, mount.Image}, " "))
	}
	slices.Sort(names)
	return names
}

// TestUnitsUnderSystemd installs the package on a machine that systemd runs and follows the documents: each daemon serves its engine as root
// and as a user, and running containers notice neither its restart nor its death.
func TestUnitsUnderSystemd(t *testing.T) {
	deb := built(t, "deb")
	m := boot(t)
	text, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	m.put(t, "/root/plyfs.deb", string(text))
	m.root(t, "dpkg -i /root/plyfs.deb")
	const verify = "systemd-analyze verify plyfs-snapshotter.service plyfs-graphplugin.service plyfs-graphplugin.socket plyfs-metrics.service" //nolint:misspell // a program's name
	if out := m.root(t, verify); out != "" {
		t.Errorf("%s: %s", verify, out)
	}
	m.root(t, `mkdir -p /root/image/bin && cp /bin/busybox /root/image/bin && tar -C /root/image -c . >/root/image.tar
		useradd -m -s /bin/sh `+machineUser+` && loginctl enable-linger `+machineUser+`
		until systemctl is-active user@$(id -u `+machineUser+`); do sleep 0.1; done`)
	t.Run("metrics", m.metrics)
	t.Run("docker", m.docker)
	t.Run("containerd", m.containerd)
	t.Run("docker of a user", m.userDocker)
	t.Run("containerd of a user", m.userContainerd)
	if failed := m.root(t, "systemctl --failed --plain --no-legend"); failed != "" {
		t.Errorf("units failed: %s", failed)
	}
	t.Run("removal", m.removal)
}

func (m *machine) metrics(t *testing.T) {
	const scrape = `curl -s --unix-socket %s/metrics.sock http://plyfs/metrics | grep '^plyfs_mounts{state="ok"}'`
	m.root(t, "systemctl enable --now plyfs-metrics && mkdir /root/l /root/m && plyfs mount -o lowerdir=/root/l /root/m")
	if got := m.root(t, fmt.Sprintf(scrape, "/run/plyfs")); !strings.HasSuffix(got, " 1\n") {
		t.Errorf("mounts: %s", got)
	}
	m.root(t, "plyfs umount /root/m")
	m.user(t, "systemctl --user enable --now plyfs-metrics && mkdir l m && plyfs mount -o lowerdir=l m")
	if got := m.user(t, fmt.Sprintf(scrape, "$XDG_RUNTIME_DIR/plyfs")); !strings.HasSuffix(got, " 1\n") {
		t.Errorf("mounts of the user: %s", got)
	}
	m.user(t, "plyfs umount m")
}

// docker follows docs/docker.md.
func (m *machine) docker(t *testing.T) {
	m.put(t, "/etc/docker/daemon.json", `{"experimental": true, "storage-driver": "plyfs"}`)
	m.root(t, `systemctl enable --now plyfs-graphplugin.socket
		systemctl restart docker
		test "$(docker info --format '{{.Driver}}')" = plyfs
		docker import -c 'CMD ["/bin/busybox", "sleep", "10000"]' /root/image.tar test
		docker run -d --network none --name long test`)
	m.dockerSurvives(t, m.root, "systemctl")
	if got := m.ps(t); !slices.Equal(got, []string{"docker long test"}) {
		t.Errorf("plyfs ps: %q", got)
	}
	// Of the socket unit: nothing fails while there is no daemon.
	m.root(t, `systemctl kill -s KILL --kill-who=main plyfs-graphplugin
		docker commit long committed
		docker rm -f long
		docker save -o /var/tmp/saved.tar test
		docker rmi committed test
		chmod a+r /var/tmp/saved.tar`)
	if got := m.ps(t); len(got) != 0 {
		t.Errorf("plyfs ps at the end: %q", got)
	}
}

// dockerSurvives restarts and kills the plugin under the container long, and looks for what was written meanwhile.
func (m *machine) dockerSurvives(t *testing.T, sh func(*testing.T, string) string, systemctl string) {
	t.Helper()
	sh(t, systemctl+` restart plyfs-graphplugin
		docker exec long /bin/busybox touch /restarted
		`+systemctl+` kill -s KILL --kill-who=main plyfs-graphplugin
		docker exec long /bin/busybox touch /killed`)
	changes := func() error {
		if got := sh(t, "docker diff long 2>&1 || true"); got != "A /restarted\nA /killed\n" && got != "A /killed\nA /restarted\n" {
			return fmt.Errorf("docker diff: %q", got)
		}
		return nil
	}
	if err := eventually(t, 10*time.Second, changes); err != nil {
		t.Error(err)
	}
}

// containerd follows docs/engines.md. The machine has cgroups without controllers, so that containers go without limits.
func (m *machine) containerd(t *testing.T) {
	m.root(t, `systemctl stop docker docker.socket
		plyfs install --engine containerd --write
		systemctl enable --now plyfs-snapshotter
		systemctl restart plyfs-snapshotter containerd
		ctr image import --snapshotter plyfs /var/tmp/saved.tar
		ctr run -d --cgroup "" --cpu-shares 0 --snapshotter plyfs docker.io/library/test:latest long`)
	m.ctrSurvives(t, m.root, "systemctl", "ctr")
	if got := m.ps(t); !slices.Equal(got, []string{"containerd default/long "}) {
		t.Errorf("plyfs ps: %q", got)
	}
	m.ctrRemove(t, m.root, "ctr")
}

// ctrSurvives restarts and kills the snapshotter under the container long, and makes another one when it is back.
func (m *machine) ctrSurvives(t *testing.T, sh func(*testing.T, string) string, systemctl, ctr string) {
	t.Helper()
	sh(t, systemctl+` restart plyfs-snapshotter
		`+ctr+` task exec --exec-id one long /bin/busybox touch /restarted
		`+systemctl+` kill -s KILL --kill-who=main plyfs-snapshotter
		`+ctr+` task exec --exec-id two long /bin/busybox touch /killed`)
	if got := sh(t, ctr+" task exec --exec-id three long /bin/busybox ls /"); got != "bin\ndev\nkilled\nproc\nrestarted\nrun\nsys\n" {
		t.Errorf("the container has %q", got)
	}
	another := func() error {
		const again = ` run --rm --cgroup "" --cpu-shares 0 --snapshotter plyfs docker.io/library/test:latest other /bin/busybox ls /bin 2>&1 || true`
		if got := sh(t, ctr+again); got != "busybox\n" {
			return fmt.Errorf("ctr run: %q", got)
		}
		return nil
	}
	if err := eventually(t, 20*time.Second, another); err != nil {
		t.Error(err)
	}
}

func (m *machine) ctrRemove(t *testing.T, sh func(*testing.T, string) string, ctr string) {
	t.Helper()
	sh(t, ctr+` task kill -s KILL long
		while `+ctr+` task ls -q | grep -q long && ! `+ctr+` task rm long; do sleep 0.1; done
		`+ctr+` container rm long
		`+ctr+` image rm --sync docker.io/library/test:latest`)
	gone := func() error {
		if got := m.ps(t); len(got) != 0 {
			return fmt.Errorf("plyfs ps at the end: %q", got)
		}
		return nil
	}
	if err := eventually(t, 20*time.Second, gone); err != nil {
		t.Error(err)
	}
}

// rootlessDocker is the unit that dockerd-rootless-setuptool.sh of Docker 23 and later writes, which is of Type=notify, for a machine without
// networks.
const rootlessDocker = `[Service]
Environment=PATH=/usr/share/docker.io/contrib:/usr/sbin:/usr/bin:/sbin:/bin
Environment=DOCKERD_ROOTLESS_ROOTLESSKIT_NET=host DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER=none
ExecStart=/usr/share/docker.io/contrib/dockerd-rootless.sh --iptables=false --ip6tables=false --bridge=none
Type=notify
NotifyAccess=all
KillMode=mixed
Delegate=yes
`

func (m *machine) userDocker(t *testing.T) {
	m.user(t, `mkdir -p .config/systemd/user .config/docker
		echo '{"experimental": true, "storage-driver": "plyfs"}' >.config/docker/daemon.json`)
	m.userUnit(t, "docker", rootlessDocker)
	m.user(t, `systemctl --user enable plyfs-graphplugin
		systemctl --user restart docker
		test "$(docker info --format '{{.Driver}}')" = plyfs
		docker load -i /var/tmp/saved.tar
		docker run -d --network none --name long test`)
	m.dockerSurvives(t, m.user, "systemctl --user")
	m.user(t, `docker rm -f long
		systemctl --user stop docker
		test "$(systemctl --user is-active plyfs-graphplugin)" = inactive`)
	if got := m.ps(t); len(got) != 0 {
		t.Errorf("plyfs ps at the end: %q", got)
	}
}

// userUnit writes a unit of the user's.
func (m *machine) userUnit(t *testing.T, name, text string) {
	t.Helper()
	m.put(t, "/run/"+name+".service", text)
	m.user(t, "mkdir -p .config/systemd/user && cp /run/"+name+".service .config/systemd/user && systemctl --user daemon-reload")
}

// rootlessContainerd runs containerd as nerdctl's containerd-rootless.sh does, for a machine without networks.
const rootlessContainerd = `[Service]
ExecStart=rootlesskit --state-dir=%t/containerd-rootless --net=host --copy-up=/etc --copy-up=/run --propagation=rslave \
	sh -c 'rm -rf /run/containerd && exec containerd --config ~/.config/containerd/config.toml'
KillMode=mixed
Delegate=yes
`

func (m *machine) userContainerd(t *testing.T) {
	m.userUnit(t, "containerd", rootlessContainerd)
	m.user(t, `mkdir -p .config/containerd
		cat >.config/containerd/config.toml <<-EOT
			version = 2
			root = "$HOME/containerd"
			state = "$XDG_RUNTIME_DIR/containerd"
			disabled_plugins = ["io.containerd.grpc.v1.cri"]
			[grpc]
			  address = "$XDG_RUNTIME_DIR/containerd/containerd.sock"
			[proxy_plugins.plyfs]
			  type = "snapshot"
			  address = "$XDG_RUNTIME_DIR/plyfs/snapshotter.sock"
		EOT
		systemctl --user enable plyfs-snapshotter
		systemctl --user start containerd
		while [ "$(systemctl --user is-active plyfs-snapshotter)" = activating ]; do sleep 0.1; done`)
	const ctr = `nsenter --preserve-credentials -U -m -t "$(cat "$XDG_RUNTIME_DIR/containerd-rootless/child_pid")" -w"$HOME" \
		ctr -a "$XDG_RUNTIME_DIR/containerd/containerd.sock"`
	m.user(t, ctr+` image import --snapshotter plyfs /var/tmp/saved.tar
		`+ctr+` run -d --cgroup "" --cpu-shares 0 --snapshotter plyfs docker.io/library/test:latest long`)
	m.ctrSurvives(t, m.user, "systemctl --user", ctr)
	m.ctrRemove(t, m.user, ctr)
	m.user(t, `systemctl --user stop containerd
		test "$(systemctl --user is-active plyfs-snapshotter)" = inactive`)
}

// removal takes the package away, and with it the daemons.
func (m *machine) removal(t *testing.T) {
	m.user(t, "systemctl --user disable --now plyfs-metrics")
	m.root(t, "dpkg -r plyfs")
	if left := m.root(t, "pgrep -a plyfs || true; ls /run/docker/plugins/plyfs.sock /run/plyfs/*.sock 2>/dev/null || true"); left != "" {
		t.Errorf("left behind: %s", left)
	}
	if units := m.root(t, "systemctl list-units --all --plain --no-legend 'plyfs-*'"); units != "" {
		t.Errorf("units left behind: %s", units)
	}
}
