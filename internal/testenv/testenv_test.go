package testenv_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m, testenv.Options{})) }

func TestRunAs(t *testing.T) {
	dir := testenv.Scratch(t)
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	err := testenv.RunAs(testenv.Cred{UID: 65534, GID: 65534}, func() error {
		return unix.Mkdir(filepath.Join(dir, "x"), 0o777)
	})
	if !errors.Is(err, unix.EACCES) {
		t.Fatalf("mkdir in another's 0700 directory: %v", err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	err = testenv.RunAs(testenv.Cred{UID: 1000, GID: 1001, Umask: 0o027}, func() error {
		return unix.Mkdir(filepath.Join(dir, "x"), 0o777)
	})
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "x"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Uid != 1000 || st.Gid != 1001 || st.Mode&0o777 != 0o750 {
		t.Fatalf("made as %d:%d with mode %o", st.Uid, st.Gid, st.Mode)
	}
	if os.Geteuid() != 0 {
		t.Fatal("the identity spread")
	}
}

func TestMountOverlay(t *testing.T) {
	for name, base := range map[string]string{"tmpfs": testenv.Scratch(t), "ext4": testenv.Ext4(t, 64<<20)} {
		t.Run(name, func(t *testing.T) { overlay(t, base) })
	}
}

func overlay(t *testing.T, base string) {
	for _, d := range []string{"l", "u", "w", "m"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m := filepath.Join(base, "m")
	o := testenv.Overlay{Lowers: []string{base + "/l"}, Upper: base + "/u", Work: base + "/w"}
	if err := testenv.MountOverlay(o, m); err != nil {
		t.Fatal(err)
	}
	defer testenv.Unmount(t, m)
	if err := os.WriteFile(filepath.Join(m, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(base + "/u/f"); err != nil {
		t.Fatal(err)
	}
}

func TestUserNamespace(t *testing.T) {
	if testenv.InUserNamespace() {
		dir := testenv.Scratch(t)
		if err := unix.Mknod(dir+"/wh", unix.S_IFCHR, 0); err != nil {
			t.Fatalf("whiteout device: %v", err)
		}
		if err := unix.Mknod(dir+"/null", unix.S_IFCHR, int(unix.Mkdev(1, 3))); !errors.Is(err, unix.EPERM) {
			t.Fatalf("device: %v", err)
		}
		return
	}
	testenv.RunInUserNamespace(t, "^TestUserNamespace$")
}

func TestCheckLeaks(t *testing.T) {
	testenv.CheckLeaks(t)
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}
