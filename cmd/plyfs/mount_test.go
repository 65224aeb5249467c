package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"plyfs/fs/mountopt"
	"plyfs/fs/server"
	"plyfs/internal/testenv"
)

// unionTree makes the directories of a small union: lower holds a file, merged is the mount point.
func unionTree(t *testing.T) string {
	t.Helper()
	dir := testenv.Scratch(t)
	leavesNothing(t, dir)
	mkdirs(t, dir, "lower", "lower2", "upper", "work", "merged")
	write(t, "low\n", dir, "lower/file")
	write(t, "two\n", dir, "lower2/second")
	return dir
}

const allLayers = "lowerdir=lower:lower2,upperdir=upper,workdir=work"

// mustMount runs the program and fails the test unless it mounts silently. That it comes back at all shows that the daemon
// holds none of the caller's pipes.
func mustMount(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	if got := runIn(t, dir, name, args...); got != (result{}) {
		t.Fatalf("%s %q: %+v", name, args, got)
	}
}

// shell runs a script in dir with a time limit: a test that used its own mount could wait for ever.
func shell(t *testing.T, dir, script string) string {
	t.Helper()
	got := runIn(t, dir, "/bin/sh", "-ec", script)
	if got.code != 0 {
		t.Fatalf("%s: %+v", script, got)
	}
	return got.stdout
}

// waitGone fails the test unless no server for dir is left soon; how soon is part of the contract with callers, who don't
// wait for it.
func waitGone(t *testing.T, dir string) {
	t.Helper()
	bin := testenv.Binary(t)
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if len(servers(bin, dir)) == 0 {
			return
		}
	}
	t.Error("the server still runs a second after the unmount")
}

func mountsOn(t *testing.T, target string) []*mountinfo.Info {
	t.Helper()
	m, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(target))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMount(t *testing.T) {
	tests := []struct {
		name, program string
		args          []string
		fstype        string
		source        string
	}{
		{"podman", "fuse-overlayfs", []string{"-o", allLayers + ",", "merged"}, "fuse.fuse-overlayfs", "fuse-overlayfs"},
		{"podman volatile", "fuse-overlayfs", []string{"-o", allLayers + ",,volatile", "merged"}, "fuse.fuse-overlayfs", "fuse-overlayfs"},
		{"containerd", "fuse-overlayfs", []string{"overlay", "merged", "-o", allLayers + ",dev,suid"}, "fuse.fuse-overlayfs", "fuse-overlayfs"},
		{"containerd plyfs", "plyfs", []string{"overlay", "merged", "-o", allLayers + ",dev,suid"}, "fuse.plyfs", "overlay"},
		{"glued", "fuse-overlayfs", []string{"-olowerdir=lower:lower2", "-oupperdir=upper,workdir=work", "merged"}, "fuse.fuse-overlayfs", "fuse-overlayfs"},
		{"plyfs mount", "plyfs", []string{"mount", "-o", allLayers, "img", "merged"}, "fuse.plyfs", "img"},
		{"helper", "mount.fuse.plyfs", []string{"img", "merged", "-n", "-o", "rw," + allLayers, "-t", "fuse.plyfs"}, "fuse.plyfs", "img"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := unionTree(t)
			merged := filepath.Join(dir, "merged")
			mustMount(t, dir, tt.program, tt.args...)
			m := mountsOn(t, merged)
			if len(m) != 1 || m[0].FSType != tt.fstype || m[0].Source != tt.source {
				t.Errorf("mounted %+v", m)
			} else if m[0].Options != "rw,noatime" || !strings.Contains(m[0].VFSOptions, "default_permissions,allow_other") {
				t.Errorf("options %s, %s", m[0].Options, m[0].VFSOptions)
			}
			if got := shell(t, dir, "cat merged/file merged/second; echo new >merged/new; echo x >>merged/file"); got != "low\ntwo\n" {
				t.Errorf("the mount holds %q", got)
			}
			if got := runIn(t, dir, "plyfs", "umount", "merged"); got != (result{}) {
				t.Errorf("umount: %+v", got)
			}
			waitGone(t, dir)
			if got := shell(t, dir, "cat upper/new upper/file lower/file"); got != "new\nlow\nx\nlow\n" {
				t.Errorf("the layers hold %q", got)
			}
		})
	}
}

// TestFileSizeLimit: applications write files as long as they may, not as long as the shell may that mounted.
func TestFileSizeLimit(t *testing.T) {
	dir := unionTree(t)
	shell(t, dir, "ulimit -S -f 8; exec "+testenv.Binary(t)+" mount -o "+allLayers+",data=noopen merged")
	defer mustMount(t, dir, "plyfs", "umount", "merged")
	shell(t, dir, "head -c 100000 /dev/zero >merged/long; truncate -s 200000 merged/long; test $(stat -c %s upper/long) = 200000")
	if got := runIn(t, dir, "/bin/sh", "-c", "trap '' XFSZ; ulimit -S -f 8; head -c 100000 /dev/zero >merged/short"); got.code == 0 {
		t.Error("an application writes more than it may")
	}
}

// TestRootIsWarm: a mount that nobody has looked into counts the subdirectories of its root by itself. When it did so shows in what it does
// not see: a directory that came into a lower afterwards, which must not happen to a mount in use.
func TestRootIsWarm(t *testing.T) {
	for wait := time.Millisecond; wait < longest; wait *= 4 {
		dir := unionTree(t)
		mkdirs(t, dir, "lower/a", "lower2/b")
		mustMount(t, dir, "plyfs", "mount", "-o", allLayers+",index=off", "merged")
		time.Sleep(wait)
		mkdirs(t, dir, "lower2/late")
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, "merged"), &st); err != nil {
			t.Fatal(err)
		}
		mustMount(t, dir, "plyfs", "umount", "merged")
		if st.Nlink == 4 {
			return
		}
		t.Logf("after %v the root has %d links", wait, st.Nlink)
	}
	t.Error("the root is looked into only when somebody asks for it")
}

func TestMountReadOnly(t *testing.T) {
	for _, opts := range []string{"lowerdir=lower:lower2", allLayers + ",ro", "lowerdir=lower,upperdir=lower2,ro", "lowerdir=lower:lower2,workdir=none"} {
		dir := unionTree(t)
		mustMount(t, dir, "fuse-overlayfs", "-o", opts, "merged")
		if m := mountsOn(t, filepath.Join(dir, "merged")); len(m) != 1 || m[0].Options != "ro,noatime" {
			t.Errorf("%s: %+v", opts, m)
		}
		got := runIn(t, dir, "/bin/sh", "-c", "cat merged/file merged/second; echo >merged/new")
		if got.stdout != "low\ntwo\n" || got.code == 0 || !strings.Contains(got.stderr, "Read-only") {
			t.Errorf("%s: %+v", opts, got)
		}
		testenv.Unmount(t, filepath.Join(dir, "merged"))
		waitGone(t, dir)
	}
}

func TestMountReportsUnknownOptions(t *testing.T) {
	dir := unionTree(t)
	got := runIn(t, dir, "fuse-overlayfs", "-o", allLayers+",bogus,foo=1", "merged")
	if want := (result{stderr: "unknown argument ignored: bogus\nunknown argument ignored: foo=1\n"}); got != want {
		t.Errorf("%+v", got)
	}
	testenv.Unmount(t, filepath.Join(dir, "merged"))
}

// TestManyLowers mounts as many layers as the kernel can, by symbolic links, in an option string beyond a page.
func TestManyLowers(t *testing.T) {
	dir := unionTree(t)
	var lowers []string
	mkdirs(t, dir, "l")
	for i := range server.MaxLowers {
		layer := fmt.Sprintf("layers/%d/diff", i)
		mkdirs(t, dir, layer)
		write(t, "", dir, layer, fmt.Sprintf("f%d", i))
		link := fmt.Sprintf("l/%026d", i)
		if err := os.Symlink("../"+layer, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
		lowers = append(lowers, link)
	}
	mustMount(t, dir, "fuse-overlayfs", "-o", "lowerdir="+strings.Join(lowers, ":")+",upperdir=upper,workdir=work", "merged")
	if got := strings.TrimSpace(shell(t, dir, "ls merged | wc -l")); got != strconv.Itoa(server.MaxLowers) {
		t.Errorf("%s files", got)
	}
	testenv.Unmount(t, filepath.Join(dir, "merged"))
}

// checkDescriptors fails the test if a server holds more than its layers in dir, the device and the socket by which it is asked
// how it does. The pipe of its verdict goes a moment after that was read.
func checkDescriptors(t *testing.T, proc, dir string) {
	t.Helper()
	var others []string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if others = otherDescriptors(proc, dir); len(others) == 0 {
			return
		}
	}
	t.Errorf("it holds %q", others)
}

func otherDescriptors(proc, dir string) (others []string) {
	control := filepath.Join(os.Getenv("PLYFS_RUNTIME_DIR"), "mounts")
	sockets := 0
	fds, _ := filepath.Glob(proc + "fd/*")
	for _, fd := range fds {
		to, _ := os.Readlink(fd)
		switch {
		case to == "/dev/null", to == "/dev/fuse", to == control, strings.HasPrefix(to, dir), strings.HasPrefix(to, "anon_inode:[event"):
		case strings.HasPrefix(to, "socket:") && sockets == 0:
			sockets++
		default:
			others = append(others, to)
		}
	}
	return others
}

// TestDaemon looks at the process that serves.
func TestDaemon(t *testing.T) {
	dir := unionTree(t)
	cmd := command(t, dir, "fuse-overlayfs", "-o", allLayers, "merged")
	cmd.Env = append(os.Environ(), "_CONTAINERS_USERNS_CONFIGURED=done")
	if got := finish(t, cmd); got != (result{}) {
		t.Fatalf("%+v", got)
	}
	pids := servers(testenv.Binary(t), dir)
	if len(pids) != 1 {
		t.Fatalf("%d servers", len(pids))
	}
	proc := fmt.Sprintf("/proc/%d/", pids[0])
	for name, want := range map[string]string{"fd/0": "/dev/null", "fd/1": "/dev/null", "fd/2": "/dev/null", "cwd": "/"} {
		if got, err := os.Readlink(proc + name); got != want {
			t.Errorf("%s is %s, %v", name, got, err)
		}
	}
	checkDescriptors(t, proc, dir)
	status, _ := os.ReadFile(proc + "status")
	if !bytes.Contains(status, []byte("Umask:\t0000\n")) {
		t.Errorf("umask is not 0")
	}
	environ, _ := os.ReadFile(proc + "environ")
	if !bytes.Contains(environ, []byte("_CONTAINERS_USERNS_CONFIGURED=done\x00")) {
		t.Error("the environment is lost")
	}
	if sid, err := unix.Getsid(pids[0]); sid != pids[0] {
		t.Errorf("session %d, %v", sid, err)
	}
	cmdline, _ := os.ReadFile(proc + "cmdline")
	if name, _, _ := bytes.Cut(cmdline, []byte{0}); filepath.Base(string(name)) != "fuse-overlayfs" {
		t.Errorf("it is called %s", name)
	}
	testenv.Unmount(t, filepath.Join(dir, "merged"))
	waitGone(t, dir)
}

// TestAbandonedDaemon holds that a server whose caller went away before the mount was there takes it back.
func TestAbandonedDaemon(t *testing.T) {
	dir := unionTree(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	cmd := command(t, dir, "fuse-overlayfs", "-o", allLayers, "merged")
	cmd.Env = append(os.Environ(), mountopt.VerdictEnv+"=3")
	cmd.ExtraFiles = []*os.File{w}
	got := finish(t, cmd)
	_ = w.Close()
	if got.code == 0 {
		t.Errorf("%+v", got)
	}
	if m := mountsOn(t, filepath.Join(dir, "merged")); len(m) != 0 {
		t.Errorf("mounted: %+v", m)
	}
}

func TestLazyUnmount(t *testing.T) {
	dir := unionTree(t)
	merged := filepath.Join(dir, "merged")
	mustMount(t, dir, "fuse-overlayfs", "-o", allLayers, "merged")
	holder := command(t, dir, "/bin/sh", "-c", "exec 3<merged/file; echo; read x")
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if got := runIn(t, dir, "plyfs", "umount", "merged"); got.code != exitMount || !strings.Contains(got.stderr, "is in use") {
		t.Errorf("umount of a busy mount: %+v", got)
	}
	if got := runIn(t, dir, "plyfs", "umount", "--lazy", "merged"); got != (result{}) {
		t.Errorf("lazy umount: %+v", got)
	}
	if m := mountsOn(t, merged); len(m) != 0 {
		t.Errorf("still mounted: %+v", m)
	}
	if len(servers(testenv.Binary(t), dir)) != 1 {
		t.Error("the server is gone while a file is open")
	}
	_ = in.Close()
	_ = holder.Wait()
	waitGone(t, dir)
}

// startForeground starts the program with -f and waits until it has mounted.
func startForeground(t *testing.T, dir, opts string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	return foregroundOn(t, dir, opts, "merged")
}

// foregroundOn is startForeground with a path that leads to merged.
func foregroundOn(t *testing.T, dir, opts, target string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd := command(t, dir, "fuse-overlayfs", "-f", "-o", opts, target)
	return cmd, awaitMount(t, dir, cmd)
}

// awaitMount starts a program in the foreground and waits until it has mounted.
func awaitMount(t *testing.T, dir string, cmd *exec.Cmd) *bytes.Buffer {
	t.Helper()
	stderr := &bytes.Buffer{}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(longest); len(mountsOn(t, filepath.Join(dir, "merged"))) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			_ = cmd.Process.Kill()
			t.Fatalf("not mounted: %s", stderr)
		}
	}
	return stderr
}

func TestForegroundSignals(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		if signal.Ignored(sig) { // by who started the tests, as nohup(1) does; programs go on ignoring it
			t.Logf("%v is ignored here", sig)
			continue
		}
		dir := unionTree(t)
		cmd, stderr := startForeground(t, dir, allLayers)
		if got := shell(t, dir, "cat merged/file"); got != "low\n" {
			t.Errorf("the mount holds %q", got)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v\n%s", sig, err, stderr)
		}
		if m := mountsOn(t, filepath.Join(dir, "merged")); len(m) != 0 {
			t.Errorf("%v: still mounted", sig)
		}
		if !strings.Contains(stderr.String(), "msg=ended") {
			t.Errorf("%v: log: %s", sig, stderr)
		}
	}
}

// TestSignalWhileMounting: at whatever moment a signal comes, no mount stays without its server.
func TestSignalWhileMounting(t *testing.T) {
	dir := unionTree(t)
	leavesNothing(t, dir)
	for i := range 40 {
		cmd := command(t, dir, "plyfs", "mount", "-f", "-o", allLayers, "merged")
		if i%2 == 0 {
			cmd = command(t, dir, "fuse-overlayfs", "-f", "-o", allLayers, "merged")
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * 500 * time.Microsecond)
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		err := cmd.Wait()
		if mounts := mountsOn(t, filepath.Join(dir, "merged")); len(mounts) != 0 {
			t.Fatalf("run %d (%v): still mounted", i, err)
		}
	}
}

func TestForegroundUnmount(t *testing.T) {
	dir := unionTree(t)
	cmd, stderr := startForeground(t, dir, allLayers+",loglevel=error")
	shell(t, dir, "ls merged")
	testenv.Unmount(t, filepath.Join(dir, "merged"))
	if err := cmd.Wait(); err != nil || stderr.Len() != 0 {
		t.Errorf("%v: %s", err, stderr)
	}
}

func TestCounters(t *testing.T) {
	dir := unionTree(t)
	mustMount(t, dir, "fuse-overlayfs", "-o", allLayers+",log=log,loglevel=info", "merged")
	shell(t, dir, "cat merged/file; echo >>merged/file")
	for _, pid := range servers(testenv.Binary(t), dir) {
		if err := unix.Kill(pid, unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
	}
	var log []byte
	for end := time.Now().Add(longest); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if log, _ = os.ReadFile(filepath.Join(dir, "log")); bytes.Contains(log, []byte("msg=counters")) {
			break
		}
	}
	for _, want := range []string{"msg=mounted", "union.copy_ups=1", "union.copy_up_bytes=", "inodes=", "requests.LOOKUP=", "process.heap="} {
		if !bytes.Contains(log, []byte(want)) {
			t.Errorf("no %s in %s", want, log)
		}
	}
	testenv.Unmount(t, filepath.Join(dir, "merged"))
	waitGone(t, dir)
}

func TestDebug(t *testing.T) {
	dir := unionTree(t)
	cmd := command(t, dir, "plyfs", "mount", "-d", "-o", allLayers, "merged")
	stderr := awaitMount(t, dir, cmd)
	shell(t, dir, "cat merged/file")
	testenv.Unmount(t, filepath.Join(dir, "merged"))
	if err := cmd.Wait(); err != nil || !strings.Contains(stderr.String(), "LOOKUP") {
		t.Errorf("%v: %s", err, stderr.String())
	}
}

func TestVolatile(t *testing.T) {
	dir := unionTree(t)
	mustMount(t, dir, "fuse-overlayfs", "-o", allLayers+",volatile", "merged")
	testenv.Unmount(t, filepath.Join(dir, "merged"))
	waitGone(t, dir)
	got := runIn(t, dir, "fuse-overlayfs", "-o", allLayers, "merged")
	if got.code != exitMount || !strings.Contains(got.stderr, "remove "+dir+"/work/work/incompat/volatile") {
		t.Errorf("%+v", got)
	}
	if err := os.RemoveAll(filepath.Join(dir, "work/work/incompat/volatile")); err != nil {
		t.Fatal(err)
	}
	mustMount(t, dir, "fuse-overlayfs", "-o", allLayers, "merged")
	testenv.Unmount(t, filepath.Join(dir, "merged"))
}

// TestVolumeWithStorage mounts what checkWork tolerates.
func TestVolumeWithStorage(t *testing.T) {
	dir := unionTree(t)
	mkdirs(t, dir, "lower/in/upper", "lower/in/work")
	got := runIn(t, dir, "fuse-overlayfs", "-o", "lowerdir=lower,upperdir=lower/in/upper,workdir=lower/in/work,private", "merged")
	if got.code != 0 || !strings.Contains(got.stderr, "are inside lowerdir=") {
		t.Fatalf("%+v", got)
	}
	shell(t, dir, "echo x >merged/x; cat lower/in/upper/x")
	testenv.Unmount(t, filepath.Join(dir, "merged"))
}

func TestDescriptorTarget(t *testing.T) {
	dir := unionTree(t)
	merged := filepath.Join(dir, "merged")
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", fuse.Fd())
	if err := unix.Mount("mine", merged, "fuse.mine", 0, data); err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	cmd := command(t, dir, "fuse-overlayfs", "-o", allLayers, "/dev/fd/5")
	cmd.ExtraFiles = []*os.File{null, null, fuse}
	got := finish(t, cmd)
	_ = fuse.Close()
	_ = null.Close()
	if got != (result{}) {
		testenv.Unmount(t, merged)
		t.Fatalf("%+v", got)
	}
	if got := shell(t, dir, "cat merged/file"); got != "low\n" {
		t.Errorf("the mount holds %q", got)
	}
	// The server has nothing to unmount, and ends at the first signal.
	server := servers(testenv.Binary(t), dir)
	if len(server) != 1 {
		t.Fatalf("servers %v", server)
	}
	if err := unix.Kill(server[0], unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitGone(t, dir)
	testenv.Unmount(t, merged)
}

// TestMountCommand goes through mount(8), which finds its helpers in /sbin only.
func TestMountCommand(t *testing.T) {
	dir := unionTree(t)
	sbin, err := filepath.EvalSymlinks("/sbin")
	if err != nil {
		t.Fatal(err)
	}
	mkdirs(t, dir, "helpers", "helpers.work")
	for _, name := range []string{"mount.plyfs", "mount.fuse.plyfs"} {
		if err := os.Symlink(testenv.MountBinary(t), filepath.Join(dir, "helpers", name)); err != nil {
			t.Fatal(err)
		}
	}
	helpers := fmt.Sprintf("lowerdir=%s,upperdir=%s/helpers,workdir=%s/helpers.work", sbin, dir, dir)
	if err := unix.Mount("overlay", sbin, "overlay", 0, helpers); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { testenv.Unmount(t, sbin) })
	for _, fstype := range []string{"plyfs", "fuse.plyfs"} {
		shell(t, dir, "mount -t "+fstype+" -o nofail,x-test,nodev,"+allLayers+" img merged && cat merged/file && findmnt -no OPTIONS merged | grep -q nodev")
		shell(t, dir, "mount -o remount,ro -t "+fstype+" img "+dir+"/merged && mount -o remount,rw merged && echo >merged/new && "+
			"mount -o remount,ro merged && findmnt -no OPTIONS merged | grep -q nodev")
		got := runIn(t, dir, "/bin/sh", "-c", "echo >merged/new")
		if got.code == 0 {
			t.Errorf("%s: written after remount,ro", fstype)
		}
		shell(t, dir, "umount merged")
		waitGone(t, dir)
	}
	got := runIn(t, dir, "/bin/mount", "-t", "plyfs", "-o", "lowerdir=none", "img", "merged")
	if got.code != exitMount || !strings.Contains(got.stderr, "lowerdir=none") {
		t.Errorf("bad mount: %+v", got)
	}
	if got := runIn(t, dir, "/bin/mount", "-f", "-t", "plyfs", "-o", allLayers, "img", "merged"); got.code != 0 {
		t.Errorf("fake mount: %+v", got)
	}
	if m := mountsOn(t, filepath.Join(dir, "merged")); len(m) != 0 {
		t.Errorf("a fake mount mounts")
	}
}

func TestNamespace(t *testing.T) {
	dir := unionTree(t)
	holder := command(t, dir, "/usr/bin/unshare", "-m", "--propagation", "private", "sh", "-c", "echo; read x")
	in, _ := holder.StdinPipe()
	out, _ := holder.StdoutPipe()
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(holder.Process.Pid)
	mustMount(t, dir, "mount.plyfs", "img", "merged", "-N", "/proc/"+pid+"/ns/mnt", "-o", allLayers)
	if got := shell(t, dir, "nsenter -m -t "+pid+" cat "+dir+"/merged/file"); got != "low\n" {
		t.Errorf("the mount holds %q", got)
	}
	if m := mountsOn(t, filepath.Join(dir, "merged")); len(m) != 0 {
		t.Errorf("mounted here: %+v", m)
	}
	shell(t, dir, "nsenter -m -t "+pid+" umount "+dir+"/merged")
	_ = in.Close()
	_ = holder.Wait()
	waitGone(t, dir)
}

func TestUserNamespace(t *testing.T) {
	dir := unionTree(t)
	for _, name := range []string{"upper", "work", "merged"} {
		if err := os.Chown(filepath.Join(dir, name), 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	script := `"$0" -o ` + allLayers + ` merged && cat merged/file && echo new >merged/new && "$1" umount merged && cat upper/new`
	cmd := command(t, dir, "/usr/bin/unshare", "-Urm", "--propagation", "private", "sh", "-ec", script, program(t, "fuse-overlayfs"), program(t, "plyfs"))
	if got := finish(t, asNobody(cmd)); got != (result{stdout: "low\nnew\n"}) {
		t.Errorf("%+v", got)
	}
	waitGone(t, dir)
}
