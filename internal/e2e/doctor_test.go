//go:build engines

package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/control"
	"plyfs/internal/testenv"
)

// diagnosis is what plyfs doctor --json prints.
type diagnosis struct {
	Subject struct {
		UID           int
		UserNamespace bool `json:"user_namespace"`
		Container     string
	}
	Count    map[string]int
	Findings []doctorFinding
}

type doctorFinding struct {
	ID, Object, Status, Detail string
	WayOut                     []struct {
		Do, Command string
		Root        bool
	} `json:"way_out"`
}

// of returns the findings of a check.
func (d diagnosis) of(id string) (found []doctorFinding) {
	for _, f := range d.Findings {
		if f.ID == id {
			found = append(found, f)
		}
	}
	return found
}

// want returns the finding of a check with that status, which has to be there.
func (d diagnosis) want(t *testing.T, id, status string) doctorFinding {
	t.Helper()
	for _, f := range d.of(id) {
		if f.Status == status {
			return f
		}
	}
	t.Fatalf("plyfs doctor: no finding %s with status %s: %+v\n%s", id, status, d.of(id), d.bad())
	return doctorFinding{}
}

// bad lists what is not well.
func (d diagnosis) bad() string {
	var lines []string
	for _, f := range d.Findings {
		if f.Status == "problem" || f.Status == "warning" {
			lines = append(lines, fmt.Sprintf("%s %s: %s", f.Status, f.ID, f.Detail))
		}
	}
	return strings.Join(lines, "\n")
}

// never fails the test if a check found something bad.
func (d diagnosis) never(t *testing.T, ids ...string) {
	t.Helper()
	for _, f := range d.Findings {
		if slices.Contains(ids, f.ID) && f.Status != "ok" && f.Status != "note" {
			t.Errorf("plyfs doctor: %s is %s: %s", f.ID, f.Status, f.Detail)
		}
	}
}

// patient is who asks the doctor, and where.
type patient struct {
	uid  int
	home string
	env  []string
	bin  string
	// before is put in front of each command.
	before []string
}

// newPatient returns a user with a home directory; the binary can be reached by all users, and is called plyfs.
func newPatient(t *testing.T, uid int) *patient {
	t.Helper()
	dir := testenv.Scratch(t)
	p := &patient{uid: uid, home: filepath.Join(dir, "home"), bin: filepath.Join(dir, "plyfs")}
	copyProgram(t, testenv.Binary(t), p.bin)
	for _, d := range []string{p.home, p.home + "/run", p.home + "/tmp"} {
		if err := errors.Join(os.Mkdir(d, 0o700), os.Chown(d, uid, uid)); err != nil {
			t.Fatal(err)
		}
	}
	p.env = []string{
		"HOME=" + p.home, "PATH=" + dir + ":" + os.Getenv("PATH"), "TMPDIR=" + p.home + "/tmp", "XDG_RUNTIME_DIR=" + p.home + "/run",
		"PLYFS_ROOT=" + p.home + "/store", "PLYFS_INDEX_DIR=" + p.home + "/index", "LANG=C.UTF-8",
	}
	if uid == 0 {
		// Those of users are below theirs already; a server that is killed leaves its socket.
		p.env = append(p.env, control.EnvRuntimeDir+"="+p.home+"/run/plyfs")
	}
	return p
}

func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, text, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// run runs a command as the patient, or as root, and returns its output and exit code.
func (p *patient) run(t *testing.T, uid int, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	args = append(slices.Clone(p.before), args...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env, cmd.Dir = p.env, "/"
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("as uid %d: %s: %v", uid, strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// ask runs plyfs doctor and checks what has to be so whatever it finds: its exit code, and that it leaves nothing behind.
func (p *patient) ask(t *testing.T) diagnosis {
	t.Helper()
	out, stderr, code := p.run(t, p.uid, p.bin, "doctor", "--json")
	left, err := filepath.Glob(p.home + "/tmp/*")
	if err != nil || len(left) > 0 {
		t.Errorf("plyfs doctor left %v, %v", left, err)
	}
	return readDiagnosis(t, out, stderr, code)
}

func readDiagnosis(t *testing.T, out, stderr string, code int) diagnosis {
	t.Helper()
	var d diagnosis
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		t.Fatalf("plyfs doctor --json: exit code %d, %v\n%s\n%s", code, err, out, stderr)
	}
	want := 0
	if d.Count["problem"] > 0 {
		want = 1
	}
	if code != want || stderr != "" {
		t.Errorf("plyfs doctor: exit code %d with %d problems; it said %q", code, d.Count["problem"], stderr)
	}
	return d
}

// follow does what the first n steps of a finding's way out say.
func (p *patient) follow(t *testing.T, f doctorFinding, n int) {
	t.Helper()
	if len(f.WayOut) < n {
		t.Fatalf("%s has %d steps: %+v", f.ID, len(f.WayOut), f.WayOut)
	}
	for _, step := range f.WayOut[:n] {
		uid := p.uid
		if step.Root {
			uid = 0
		}
		if _, stderr, code := p.run(t, uid, "sh", "-c", step.Command); code != 0 {
			t.Fatalf("the way out of %s: as uid %d: %s: exit code %d: %s", f.ID, uid, step.Command, code, stderr)
		}
	}
}

// ownEtc gives the test an /etc of its own, in which the tools for users work as ever.
func ownEtc(t *testing.T) {
	t.Helper()
	dir := testenv.Scratch(t)
	o := testenv.Overlay{Lowers: []string{"/etc"}, Upper: dir + "/upper", Work: dir + "/work"}
	if err := errors.Join(os.Mkdir(o.Upper, 0o755), os.Mkdir(o.Work, 0o755), testenv.MountOverlay(o, "/etc")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { testenv.Unmount(t, "/etc") })
}

func TestDoctorAsRoot(t *testing.T) {
	p := newPatient(t, 0)
	d := p.ask(t)
	d.never(t, "fuse.device", "fuse.mount", "storage.files", "storage.drivers", "storage.index", "kernel.version")
	for _, id := range []string{"fuse.device", "fuse.mount", "kernel.fuse", "kernel.overlay", "userns.create"} {
		d.want(t, id, "ok")
	}
	if err := os.Mkdir(p.home+"/index", 0o777); err != nil {
		t.Fatal(err)
	}
	p.follow(t, p.ask(t).want(t, "storage.index", "warning"), 1)
	p.ask(t).want(t, "storage.index", "ok")
	text, _, _ := p.run(t, 0, p.bin, "doctor")
	if !strings.Contains(text, "\nFUSE\n") || strings.Contains(text, "\x1b") {
		t.Errorf("plyfs doctor prints:\n%s", text)
	}
	if _, stderr, code := p.run(t, 0, p.bin, "doctor", "now"); code != 16 ||
		!strings.Contains(stderr, "unexpected argument now") {
		t.Errorf("plyfs doctor now: exit code %d, %s", code, stderr)
	}
}

// A user gets from a machine on which nothing works to one without problems by doing what the doctor says.
func TestDoctorAsUser(t *testing.T) {
	ownEtc(t)
	const name = "plyfspatient"
	p := newPatient(t, userID)
	// A system's user gets no subordinate ids.
	id := fmt.Sprint(userID)
	for _, args := range [][]string{
		{"groupadd", "-g", id, name},
		{"useradd", "-r", "-u", id, "-g", id, "-d", p.home, name},
	} {
		if _, stderr, code := p.run(t, 0, args...); code != 0 {
			t.Fatalf("%s (package passwd): %s", args[0], stderr)
		}
	}
	if err := os.Chmod("/dev/fuse", 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod("/dev/fuse", 0o666) })

	d := p.ask(t)
	if d.Subject.UID != userID || d.Count["problem"] == 0 {
		t.Fatalf("without a device and ids, as uid %d: %s", d.Subject.UID, d.bad())
	}
	d.want(t, "fuse.mount", "problem")
	p.follow(t, d.want(t, "fuse.device", "problem"), 1)
	for _, f := range d.of("userns.subids") {
		p.follow(t, f, 1)
	}
	p.follow(t, d.want(t, "fuse.allow_other", "note"), 1)

	d = p.ask(t)
	if d.Count["problem"] != 0 {
		t.Errorf("problems stay:\n%s", d.bad())
	}
	for _, id := range []string{
		"fuse.device", "fuse.mount", "fuse.fusermount", "fuse.allow_other", "userns.subids",
		"userns.mapped", "storage.drivers",
	} {
		d.want(t, id, "ok")
	}
}

// Root of a namespace with a single id is told of that, and can mount.
func TestDoctorInUserNamespace(t *testing.T) {
	p := newPatient(t, 0)
	if err := errors.Join(os.Chown(p.home, userID, userID), os.Chown(p.home+"/tmp", userID, userID)); err != nil {
		t.Fatal(err)
	}
	p.uid, p.before = userID, []string{"unshare", "-Urm"}
	d := p.ask(t)
	if !d.Subject.UserNamespace || d.Subject.UID != 0 {
		t.Errorf("subject: %+v", d.Subject)
	}
	d.want(t, "userns.mapped", "warning")
	d.want(t, "fuse.mount", "ok")
	d.want(t, "kernel.overlay", "ok")
	d.want(t, "kernel.passthrough", "note")
}

// In a chroot, as build tools make them, what doctor starts in a mount namespace of its own finds the programs by PATH.
func TestDoctorInChroot(t *testing.T) {
	p := newPatient(t, 0)
	p.before = []string{"unshare", "-m", "sh", "-ec", `mount --rbind / "$0"; exec chroot "$0" "$@"`, testenv.Scratch(t)}
	p.ask(t).never(t, "fuse.mount", "kernel.overlay", "storage.drivers")
}

// Mounts whose servers were killed, or don't answer, are found without getting stuck.
func TestDoctorBrokenMounts(t *testing.T) {
	p := newPatient(t, 0)
	dir := testenv.Scratch(t)
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(dir, "merged")
	options := fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", dir, dir, dir)
	if _, stderr, code := p.run(t, 0, p.bin, "mount", "-o", options, merged); code != 0 {
		t.Fatalf("plyfs mount: %s", stderr)
	}
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	p.ask(t).want(t, "left.mounts", "ok")

	pid := serverOf(t, merged)
	testenv.Stop(t, pid)
	hung := p.ask(t).want(t, "left.mounts", "problem")
	signal(t, pid, unix.SIGCONT)
	if hung.Object != merged || !strings.Contains(hung.Detail, "does not answer") {
		t.Errorf("a stopped server: %+v", hung)
	}
	p.ask(t).want(t, "left.mounts", "ok")

	signal(t, pid, unix.SIGKILL)
	// Attributes would be answered from the kernel's cache.
	gone := func() bool { return errors.Is(unix.Statfs(merged, new(unix.Statfs_t)), unix.ENOTCONN) }
	testenv.Eventually(t, "the mount of a killed server ends", gone)
	p.follow(t, p.ask(t).want(t, "left.mounts", "problem"), 1)
	p.ask(t).want(t, "left.mounts", "ok")
	if isMountPoint(merged) {
		t.Errorf("%s is still mounted", merged)
	}
}

// A server in a mount namespace that nobody can enter any more is found, and ends as the way out says.
func TestDoctorOrphan(t *testing.T) {
	p := newPatient(t, 0)
	dir := testenv.Scratch(t)
	for _, d := range []string{"lower", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(dir, "merged")
	if _, stderr, code := p.run(t, 0, "unshare", "-m", p.bin, "mount", "-o", "lowerdir="+dir+"/lower", merged); code != 0 {
		t.Fatalf("plyfs mount in a namespace of its own: %s", stderr)
	}
	pid := serverOf(t, merged)
	orphan := p.ask(t).want(t, "left.servers", "warning")
	if orphan.Object != fmt.Sprint(pid) {
		t.Errorf("the orphan is %s, want %d", orphan.Object, pid)
	}
	p.follow(t, orphan, 1)
	for deadline := time.Now().Add(patience); len(p.ask(t).of("left.servers")[0].Object) > 0; {
		if time.Now().After(deadline) {
			t.Fatal("the orphan goes on after the way out")
		}
	}
}

// serverOf returns the process that serves the mount at target.
func serverOf(t *testing.T, target string) int {
	t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		text, err := os.ReadFile(f)
		var pid int
		if err == nil && strings.Contains(string(text), "\x00"+target+"\x00") {
			if _, err := fmt.Sscanf(f, "/proc/%d/", &pid); err == nil {
				return pid
			}
		}
	}
	t.Fatalf("no process serves %s", target)
	return 0
}

func signal(t *testing.T, pid int, sig unix.Signal) {
	t.Helper()
	if err := unix.Kill(pid, sig); err != nil {
		t.Fatalf("%v to %d: %v", sig, pid, err)
	}
}

// In a container without the device the doctor names the flags that it lacks; with them all is well.
func TestDoctorInContainer(t *testing.T) {
	test := func(t *testing.T, e *engine) {
		writeBareImage(t, e.path("bare.tar"))
		e.run(t, "podman", "import", "-q", e.path("bare.tar"), imageName)
		copyProgram(t, testenv.Binary(t), e.path("plyfs"))
		ask := func(flags ...string) diagnosis {
			args := append([]string{"podman", "run", "--rm", "-v", e.path("plyfs") + ":/bin/plyfs:ro"}, flags...)
			out, err := e.try(append(args, imageName, "/bin/plyfs", "doctor", "--json")...)
			code := 0
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				code = exit.ExitCode()
			} else if err != nil {
				t.Fatal(err)
			}
			return readDiagnosis(t, out, "", code)
		}
		d := ask()
		if !strings.HasPrefix(d.Subject.Container, "podman") {
			t.Errorf("the container is %q", d.Subject.Container)
		}
		device := d.want(t, "fuse.device", "problem")
		flags := regexp.MustCompile(`podman run (.*) \.\.\.`).FindStringSubmatch(device.WayOut[0].Do)
		if flags == nil {
			t.Fatalf("the way out has no flags: %+v", device.WayOut)
		}
		d = ask(strings.Fields(flags[1])...)
		d.want(t, "fuse.device", "ok")
		if mount := d.of("fuse.mount")[0]; mount.Status != "ok" {
			flags = regexp.MustCompile(`podman run (.*) \.\.\.`).FindStringSubmatch(mount.WayOut[0].Do)
			if flags == nil {
				t.Fatalf("fuse.mount: %+v", mount)
			}
			d = ask(strings.Fields(flags[1])...)
		}
		d.want(t, "fuse.mount", "ok")
	}
	if testing.Short() {
		test(t, newEngine(t, userID))
		return
	}
	asEach(t, test)
}

// writeBareImage writes a root file system in which a static program runs.
func writeBareImage(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tmp"} {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}
		if d == "tmp" {
			h.Mode = 0o1777
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}
