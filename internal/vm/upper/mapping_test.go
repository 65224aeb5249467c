//go:build vm

package upper

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/drivers/plyfs"
	"plyfs/internal/control"
	"plyfs/internal/testenv"
	"plyfs/internal/vm/vmtest"
)

// rounds is how often something is unmounted. With a bare umount Linux 6.12 loses about one round in ten, and 6.1 three in four.
const rounds = 60

// writeMapped writes a file through a mapping whose descriptor is closed before the last page is touched.
func writeMapped(t *testing.T, name string, last byte) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = f.Write(make([]byte, 2*os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 2*os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	m[0] = 1
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	m[0] = last
	if err := unix.Munmap(m); err != nil {
		t.Fatal(err)
	}
}

// TestLastMappedWrite: what was written last through a mapping is in the upper when an unmount by plyfs, its driver or its server has
// returned. Kernels before 6.18 don't see to that.
func TestLastMappedWrite(t *testing.T) {
	vmtest.Run(t, "modprobe", "fuse")
	check := func(t *testing.T, round int, upper string, lost *int) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(upper, "f"))
		if err != nil {
			t.Fatal(err)
		}
		if b[0] != byte(2+round%200) {
			*lost++
		}
	}
	for _, way := range []struct {
		name    string
		unmount func(t *testing.T, mnt string)
	}{
		{"command", func(t *testing.T, mnt string) { vmtest.Run(t, testenv.Binary(t), "umount", mnt) }},
		{"signal", endServer},
	} {
		t.Run(way.name, func(t *testing.T) {
			base := testenv.Scratch(t)
			dirs := make(map[string]string)
			for _, name := range []string{"lower", "upper", "work", "merged"} {
				dirs[name] = filepath.Join(base, name)
				if err := os.Mkdir(dirs[name], 0o755); err != nil {
					t.Fatal(err)
				}
			}
			lost := 0
			for round := range rounds {
				vmtest.Run(t, testenv.Binary(t), "mount", "-o",
					"lowerdir="+dirs["lower"]+",upperdir="+dirs["upper"]+",workdir="+dirs["work"], dirs["merged"])
				waitForSocket(t, dirs["merged"])
				writeMapped(t, filepath.Join(dirs["merged"], "f"), byte(2+round%200))
				way.unmount(t, dirs["merged"])
				check(t, round, dirs["upper"], &lost)
			}
			report(t, lost)
		})
	}
	t.Run("driver", func(t *testing.T) {
		base := testenv.Scratch(t)
		d, err := plyfs.Open(t.Context(), drivers.Options{
			Home: filepath.Join(base, "home"), Run: filepath.Join(base, "run"),
			Options: map[string]string{"mount_program": testenv.Binary(t)},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if err := d.CreateReadWrite(t.Context(), "c", "", nil); err != nil {
			t.Fatal(err)
		}
		lost := 0
		for round := range rounds {
			root, err := d.Get(t.Context(), "c", nil)
			if err != nil {
				t.Fatal(err)
			}
			writeMapped(t, filepath.Join(root, "f"), byte(2+round%200))
			if err := d.Put(t.Context(), "c"); err != nil {
				t.Fatal(err)
			}
			check(t, round, filepath.Join(base, "home", "c", "diff"), &lost)
		}
		report(t, lost)
	})
}

func report(t *testing.T, lost int) {
	t.Helper()
	if lost > 0 {
		t.Errorf("lost the last write in %d of %d rounds", lost, rounds)
	}
}

// waitForSocket returns the pid of the server of a mount, once that can be asked.
func waitForSocket(t *testing.T, mnt string) int {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		list, err := control.List(control.Own)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			if st, err := s.Status(t.Context()); err == nil && st.Target == mnt {
				return st.PID
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server of %s offers no socket", mnt)
		}
	}
}

// endServer ends the server of a mount as a system that shuts down does.
func endServer(t *testing.T, mnt string) {
	t.Helper()
	pid := waitForSocket(t, mnt)
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		out, _ := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
		if s := strings.TrimSpace(string(out)); s == "" || s[0] == 'Z' {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d lives on", pid)
		}
	}
}
