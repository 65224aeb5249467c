package fusefs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// The kernel takes a file of a plain file system for passthrough if it has that at all, and refuses one of an overlay.
func TestProbeKernel(t *testing.T) {
	dir := testenv.Scratch(t)
	for _, d := range []string{"mnt", "lower", "upper", "work", "merged"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	o := testenv.Overlay{Lowers: []string{dir + "/lower"}, Upper: dir + "/upper", Work: dir + "/work"}
	must(t, testenv.MountOverlay(o, dir+"/merged"))
	t.Cleanup(func() { testenv.Unmount(t, dir+"/merged") })
	for _, c := range []struct {
		name    string
		refused string
	}{{"file", ""}, {"merged/file", unix.ELOOP.Error()}} {
		t.Run(c.name, func(t *testing.T) {
			f, err := os.Create(filepath.Join(dir, c.name))
			must(t, err)
			defer f.Close()
			k, err := ProbeKernel(dir+"/mnt", int(f.Fd()))
			must(t, err)
			if k.Major != 7 || k.Minor < 23 {
				t.Errorf("protocol %d.%d", k.Major, k.Minor)
			}
			want := c.refused
			if !k.Passthrough {
				want = ""
			}
			if k.Refused != want {
				t.Errorf("%+v: refused %q, want %q", k, k.Refused, want)
			}
		})
	}
	if _, err := ProbeKernel(dir+"/none", -1); err == nil {
		t.Error("a directory that is not there: no error")
	}
}
