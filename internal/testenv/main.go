package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The environment through which the outer process tells the inner one what it prepared.
const (
	envStage       = "PLYFS_TEST_STAGE" // "", "root" or "user": which namespaces this process is in
	envScratch     = "PLYFS_TEST_SCRATCH"
	envBinary      = "PLYFS_TEST_BINARY" // may also be set by the caller, to test a given binary
	envBinaryError = "PLYFS_TEST_BINARY_ERROR"
)

// Options say what Main prepares.
type Options struct {
	// Binary builds plyfs/cmd/plyfs for Binary to return, and plyfs/cmd/plyfs-mount beside it.
	Binary bool
	// Daemons builds plyfs/cmd/plyfsd beside it.
	Daemons bool
}

// Main is called by TestMain and returns the exit code. It starts the test binary again in new namespaces, with the
// same arguments, and there runs the tests and checks that they left no mount and no process.
func Main(m *testing.M, o Options) int {
	if os.Getenv(envStage) != "" {
		return inner(m)
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "testenv: these tests mount file systems and must run as root")
		return 1
	}
	scratch, err := os.MkdirTemp("", "plyfs-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "testenv:", err)
		return 1
	}
	defer os.RemoveAll(scratch)
	// Whatever is mounted for long enough to get an index must not leave it on the machine, nor a server that is killed its socket.
	env := append(os.Environ(), envStage+"=root", envScratch+"="+scratch, "PLYFS_INDEX_DIR="+filepath.Join(scratch, "index"),
		"PLYFS_RUNTIME_DIR="+filepath.Join(scratch, "run"))
	if o.Binary && os.Getenv(envBinary) == "" {
		env = append(env, build(scratch, o)...)
	}
	code, err := reexec(env, os.Args[1:], os.Stdout, os.Stderr, &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "testenv: new namespaces:", err)
		return 1
	}
	return code
}

// build compiles the binaries under test outside the scratch tmpfs that the inner process will mount.
func build(dir string, o Options) []string {
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return []string{envBinaryError + "=" + err.Error()}
	}
	args := []string{"build"}
	if runtime.GOARCH == "amd64" || runtime.GOARCH == "arm64" {
		args = append(args, "-ldflags=plyfs/cmd/plyfs-mount=-E plyfs/internal/launch/early.Entry") // as in the Makefile
	}
	args = append(args, "-o", bin+"/", "plyfs/cmd/plyfs", "plyfs/cmd/plyfs-mount")
	if o.Daemons {
		args = append(args, "plyfs/cmd/plyfsd")
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return []string{fmt.Sprintf("%s=go %s: %v: %s", envBinaryError, strings.Join(args, " "), err, bytes.TrimSpace(out))}
	}
	return []string{envBinary + "=" + filepath.Join(bin, "plyfs")}
}

// reexec runs this binary again and waits for it. The child dies with this thread, which is therefore locked: the
// child is init of a PID namespace, so all that it started dies too.
func reexec(env, args []string, stdout, stderr *os.File, attr *syscall.SysProcAttr) (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// By its magic link: a user namespace's root may not search the directory that the binary was built in.
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = stdout, stderr
	attr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr = attr
	err := runInterruptibly(cmd)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if code := exit.ExitCode(); code >= 0 {
			return code, nil
		}
		return 1, err
	}
	return 0, err
}

// runInterruptibly is cmd.Run that kills the child when this process is asked to end, so that the caller still cleans up.
// SIGQUIT, by which go test ends a test that is overdue, is passed on first: the child's stacks are what matters.
func runInterruptibly(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	defer signal.Stop(sig)
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case err := <-done:
			return err
		case s := <-sig:
			if s == syscall.SIGQUIT {
				_ = cmd.Process.Signal(s)
				time.AfterFunc(time.Second, func() { _ = cmd.Process.Kill() })
				continue
			}
			_ = cmd.Process.Kill()
		}
	}
}

// inner prepares the namespaces and runs the tests.
func inner(m *testing.M) int {
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "testenv:", err)
		return 1
	}
	before, err := mountPoints()
	if err != nil {
		fmt.Fprintln(os.Stderr, "testenv:", err)
		return 1
	}
	code := m.Run()
	if code != 0 {
		return code
	}
	if err := leftBehind(before); err != nil {
		fmt.Fprintln(os.Stderr, "testenv:", err)
		return 1
	}
	return 0
}

// prepare makes mounts private and mounts what the tests need. It is the first thing that runs in the process.
func prepare() error {
	unix.Umask(0)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	scratch := os.Getenv(envScratch)
	tmp := filepath.Join(scratch, "t")
	if err := os.Chmod(scratch, 0o755); err != nil && os.Getenv(envStage) == "root" {
		return err
	}
	if err := os.Mkdir(tmp, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := unix.Mount("tmpfs", tmp, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	if err := os.Setenv("TMPDIR", tmp); err != nil {
		return err
	}
	if os.Getenv(envStage) != "root" {
		return nil
	}
	if err := coverCache(tmp); err != nil {
		return err
	}
	return openFuse(filepath.Join(tmp, "fuse"))
}

// coverCache keeps what is written to /var/cache in tmp: engines start servers without this environment, and so with the machine's
// directory for indexes.
func coverCache(tmp string) error {
	const cache = "/var/cache"
	upper, work := filepath.Join(tmp, "cache"), filepath.Join(tmp, "cache.work")
	for _, dir := range []string{upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	options := "lowerdir=" + cache + ",upperdir=" + upper + ",workdir=" + work
	err := unix.Mount("overlay", cache, "overlay", 0, options)
	if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("mount an overlay on %s: %w", cache, err)
	}
	return nil
}

// openFuse puts a device that everyone may open over /dev/fuse, so that unprivileged mounts can be tested whatever the
// machine's own permissions are.
func openFuse(node string) error {
	var st unix.Stat_t
	if err := unix.Stat("/dev/fuse", &st); err != nil {
		return fmt.Errorf("/dev/fuse: %w", err)
	}
	if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(st.Rdev)); err != nil {
		return fmt.Errorf("mknod %s: %w", node, err)
	}
	if err := unix.Mount(node, "/dev/fuse", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind /dev/fuse: %w", err)
	}
	return nil
}

// Binary returns the path of the plyfs binary under test.
func Binary(t testing.TB) string {
	t.Helper()
	if bin := os.Getenv(envBinary); bin != "" {
		return bin
	}
	t.Fatalf("no plyfs binary to test: %s", os.Getenv(envBinaryError))
	return ""
}

// MountBinary returns the path of the program that only mounts, which is beside Binary; of Binary where that stands alone.
func MountBinary(t testing.TB) string {
	t.Helper()
	bin := Binary(t)
	if mount := filepath.Join(filepath.Dir(bin), "plyfs-mount"); isFile(mount) {
		return mount
	}
	return bin
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// InUserNamespace reports whether this process was started by RunInUserNamespace.
func InUserNamespace() bool { return os.Getenv(envStage) == "user" }

// RunInUserNamespace runs the tests of this binary that match pattern once more, in a new user namespace whose ids
// 0 to 65535 are otherwise unused ids of the machine, and fails t if they fail. Within, the process is root of that
// namespace and nothing outside, as a rootless container's engine is.
func RunInUserNamespace(t *testing.T, pattern string) {
	t.Helper()
	if InUserNamespace() {
		t.Fatal("already in a user namespace")
	}
	const base, count = 1 << 20, 1 << 16
	dir := Scratch(t)
	if err := os.Chown(dir, base, base); err != nil {
		t.Fatal(err)
	}
	args := []string{"-test.run=" + pattern}
	for _, a := range os.Args[1:] {
		// Results of the inner run reach this one by its exit code and output alone.
		if !strings.HasPrefix(a, "-test.run") && !strings.HasPrefix(a, "-test.testlogfile") &&
			!strings.HasPrefix(a, "-test.coverprofile") && !strings.HasPrefix(a, "-test.gocoverdir") {
			args = append(args, a)
		}
	}
	out, err := os.Create(filepath.Join(Scratch(t), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: base, Size: count}}
	code, err := reexec(append(os.Environ(), envStage+"=user", envScratch+"="+dir), args, out, out,
		&syscall.SysProcAttr{
			Cloneflags:                 syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
			UidMappings:                ids,
			GidMappings:                ids,
			GidMappingsEnableSetgroups: true,
			Credential:                 &syscall.Credential{Uid: 0, Gid: 0},
		})
	text, _ := os.ReadFile(out.Name())
	if err != nil || code != 0 {
		t.Fatalf("in the user namespace: exit code %d, %v\n%s", code, err, text)
	}
	if testing.Verbose() {
		t.Logf("%s", text)
	}
}
