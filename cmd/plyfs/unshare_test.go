package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// testUID is an unprivileged user of the tests, with the subordinate ids from testSubID on.
const (
	testUID   = 54321
	testSubID = 3000000
)

// replaceFile shows other content in place of a file of the machine, until the test ends.
func replaceFile(t *testing.T, path, content string) {
	t.Helper()
	with := filepath.Join(testenv.Scratch(t), "file")
	if err := os.WriteFile(with, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(with, path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, 0); err != nil {
			t.Error(err)
		}
	})
}

// userRun is an unprivileged user with a home directory.
type userRun struct {
	t    *testing.T
	home string
}

// newUserRun makes the user, with subordinate ids as the lines say.
func newUserRun(t *testing.T, subids string) *userRun {
	t.Helper()
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	home := testenv.Scratch(t)
	if err := os.Chown(home, testUID, testUID); err != nil {
		t.Fatal(err)
	}
	leavesNothing(t, home)
	replaceFile(t, "/etc/passwd", string(passwd)+"plyfstest:x:54321:54321::"+home+":/bin/sh\n")
	replaceFile(t, "/etc/subuid", subids)
	replaceFile(t, "/etc/subgid", subids)
	return &userRun{t, home}
}

func (u *userRun) command(args ...string) *exec.Cmd {
	u.t.Helper()
	cmd := command(u.t, u.home, "plyfs", args...)
	cmd.Env = []string{"HOME=" + u.home, "PATH=" + os.Getenv("PATH"), "PLYFS_DRIVER=vfs", "TMPDIR=" + u.home}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: testUID, Gid: testUID}}
	return cmd
}

func (u *userRun) plyfs(args ...string) result {
	u.t.Helper()
	return finish(u.t, u.command(args...))
}

const testSubIDs = "plyfstest:3000000:65536\n"

// TestUnshare: a command of a user runs as root of a namespace with the user's subordinate ids.
func TestUnshare(t *testing.T) {
	u := newUserRun(t, testSubIDs)
	r := u.plyfs("unshare", "sh", "-c", "id -u; cat /proc/self/uid_map; touch file; chown 5:6 file; echo $_PLYFS_NAMESPACE")
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if r.code != 0 || len(lines) != 3 || lines[0] != "0" ||
		!slices.Equal(strings.Fields(lines[1]), []string{"0", "54321", "1"}) ||
		!slices.Equal(strings.Fields(lines[2]), []string{"1", "3000000", "65536"}) {
		t.Fatalf("code %d, %q, %s", r.code, r.stdout, r.stderr)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(u.home, "file"), &st); err != nil || st.Uid != testSubID+4 || st.Gid != testSubID+5 {
		t.Errorf("owner %d:%d, %v", st.Uid, st.Gid, err)
	}
	for args, code := range map[string]int{"exit 7": 7, "kill -TERM $$": 128 + 15, "true": 0} {
		if r := u.plyfs("unshare", "--", "sh", "-c", args); r.code != code || r.stderr != "" {
			t.Errorf("%s: exit code %d, want %d, %q", args, r.code, code, r.stderr)
		}
	}
	if r := u.plyfs("unshare", "no-such-program"); r.code != storeNotFound {
		t.Errorf("exit code %d, %q", r.code, r.stderr)
	}
	if r := u.plyfs("unshare", "--bogus"); r.code != storeUsage {
		t.Errorf("exit code %d, %q", r.code, r.stderr)
	}
}

// TestUnshareForwardsSignals: who ends the outer process ends the command.
func TestUnshareForwardsSignals(t *testing.T) {
	u := newUserRun(t, testSubIDs)
	cmd := u.command("unshare", "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 9 {
		t.Errorf("exit code %d", code)
	}
}

// TestStoreOfUser: commands of a user work on a store in the home directory, whose files have the owners that they have in
// the image.
func TestStoreOfUser(t *testing.T) {
	u := newUserRun(t, testSubIDs)
	for _, args := range [][]string{
		{"container", "create", "scratch", "c1"},
		{"unshare", "sh", "-c", `root=$($0 container mount c1) && echo x >"$root/file" && chown 5:6 "$root/file"`, testenv.Binary(t)},
		{"container", "commit", "c1", "mine"},
	} {
		if r := u.plyfs(args...); r.code != 0 || r.stderr != "" {
			t.Fatalf("%v: code %d, %s", args, r.code, r.stderr)
		}
	}
	if r := u.plyfs("container", "changes", "c1"); r.stdout != "A /file\n" {
		t.Errorf("%q, %s", r.stdout, r.stderr)
	}
	r := u.plyfs("layer", "export", "mine")
	if r.code != 0 || !strings.Contains(r.stdout, "0000005\x000000006\x00") {
		t.Errorf("code %d, %s: the stream does not have the owner of the container", r.code, r.stderr)
	}
	if _, err := os.Stat(filepath.Join(u.home, ".local/share/plyfs/db")); err != nil {
		t.Error(err)
	}
	if r := u.plyfs("image", "inspect", "gone"); r.code != storeNotFound {
		t.Errorf("exit code %d, %q", r.code, r.stderr)
	}
}

// TestUserMountWantsSession: a mount that nobody would see is not made, and the message says where it would be.
func TestUserMountWantsSession(t *testing.T) {
	u := newUserRun(t, testSubIDs)
	with := func(args ...string) result {
		cmd := u.command(args...)
		cmd.Env = append(cmd.Env, "PLYFS_DRIVER=plyfs")
		return finish(t, cmd)
	}
	if r := with("container", "create", "scratch", "c1"); r.code != 0 {
		t.Fatalf("code %d, %s", r.code, r.stderr)
	}
	if r := with("container", "mount", "c1"); r.code != storeUnsupported || !strings.Contains(r.stderr, "plyfs unshare") || r.stdout != "" {
		t.Errorf("code %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	script := `root=$($0 container mount c1) && echo x >"$root/file" && grep -c "$root" /proc/self/mountinfo && $0 container umount c1`
	if r := with("unshare", "sh", "-c", script, testenv.Binary(t)); r.code != 0 || r.stdout != "1\n" {
		t.Errorf("code %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	if r := with("container", "changes", "c1"); r.stdout != "A /file\n" {
		t.Errorf("%q, %s", r.stdout, r.stderr)
	}
}

// TestUserWithoutSubordinateIDs: there is a namespace with one id, and a warning what that means.
func TestUserWithoutSubordinateIDs(t *testing.T) {
	u := newUserRun(t, "other:3000000:65536\nplyfstest:x:1\nplyfstest:1:0\n")
	r := u.plyfs("unshare", "cat", "/proc/self/uid_map")
	if r.code != 0 || !slices.Equal(strings.Fields(r.stdout), []string{"0", "54321", "1"}) ||
		!strings.Contains(r.stderr, "/etc/subuid has no ids for user plyfstest") {
		t.Errorf("code %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	if r := u.plyfs("container", "create", "scratch", "c1"); r.code != 0 || r.stdout != "c1\n" {
		t.Errorf("code %d, %q, %q", r.code, r.stdout, r.stderr)
	}
}

func TestParseSubordinates(t *testing.T) {
	text := []byte("u:1:2\n1000:10:20\nother:5:5\nu:bad:1\nu:1\nu:4294967290:10\n\n u:7:8 \n")
	if got := parseSubordinates(text, "u", 1000); !slices.Equal(got, []idRange{{1, 2}, {10, 20}, {7, 8}}) {
		t.Errorf("%v", got)
	}
	if got := parseSubordinates([]byte(":1:2\n"), "", 1000); len(got) != 0 {
		t.Errorf("a nameless user has %v", got)
	}
}
