//go:build vm

package devicemapper

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/testenv"
	"plyfs/internal/vm/vmtest"
)

// vmStore is a store on disks of the machine.
type vmStore struct {
	t       testing.TB
	options drivers.Options
}

func newVMStore(t testing.TB, given map[string]string) *vmStore {
	t.Helper()
	vmtest.Run(t, "modprobe", "-a", "dm-thin-pool", "loop", "xfs")
	return &vmStore{t, drivers.Options{
		Home: filepath.Join(testenv.Scratch(t), "home"), Run: filepath.Join(testenv.Scratch(t), "run"), Options: given,
	}}
}

func (s *vmStore) open() *Driver {
	s.t.Helper()
	d, err := Factory().Open(s.t.Context(), s.options)
	must(s.t, err)
	must(s.t, d.Cleanup(s.t.Context()))
	return d.(*Driver)
}

// checkMetadata has the pool's metadata checked, and compares the devices in it with those of the records.
func checkMetadata(t testing.TB, metadata string, want int) {
	t.Helper()
	vmtest.Run(t, "thin_check", metadata)
	if n := strings.Count(vmtest.Run(t, "thin_dump", metadata), "<device "); n != want {
		t.Errorf("%d devices in the pool, want %d", n, want)
	}
}

// A pool on block devices: layers larger than their parents, a restart, what thin_check says, and that others' data
// are left alone.
func TestBlockDevices(t *testing.T) {
	for _, fs := range []string{fsExt4, fsXFS} {
		t.Run(fs, func(t *testing.T) {
			data, metadata := vmtest.Disk(t, 0), vmtest.Disk(t, 1)
			s := newVMStore(t, map[string]string{optData: data, optMetadata: metadata, optFS: fs, optBaseSize: "320M"})
			d := s.open()
			must(t, d.Create(t.Context(), "base", "", nil))
			must(t, d.Fill(t.Context(), "base", fillFile("1")))
			quota := &drivers.CreateOptions{Quota: drivers.Quota{Bytes: 1 << 30}}
			must(t, d.CreateReadWrite(t.Context(), "large", "base", quota))
			root, err := d.Get(t.Context(), "large", nil)
			must(t, err)
			// What the image has does not count.
			var st unix.Statfs_t
			must(t, unix.Statfs(root, &st))
			if size := int64(st.Blocks) * st.Bsize; size < 1<<30 || size > 1<<30+64<<20 {
				t.Errorf("statfs shows %d bytes, the quota is %d", size, quota.Quota.Bytes)
			}
			must(t, fillFile("large")(root))
			// A snapshot of what is in use has what was written.
			must(t, d.Create(t.Context(), "commit", "large", nil))
			must(t, d.Close())
			d = s.open()
			must(t, d.Put(t.Context(), "large"))
			root, err = d.Get(t.Context(), "commit", nil)
			must(t, err)
			if b, err := os.ReadFile(filepath.Join(root, "f")); err != nil || string(b) != "large" {
				t.Errorf("the snapshot has %q, %v", b, err)
			}
			must(t, d.Put(t.Context(), "commit"))
			must(t, d.Remove(t.Context(), "large"))
			must(t, d.Close())
			checkMetadata(t, metadata, 3)
			if out := vmtest.Run(t, "dmsetup", "ls"); strings.Contains(out, "plyfs") {
				t.Errorf("devices left:\n%s", out)
			}
			// Another store does not take the devices.
			other := newVMStore(t, s.options.Options)
			_, err = Factory().Open(t.Context(), other.options)
			wants(t, "devices of another store", err, drivers.ErrInvalid)
		})
	}
}

// A pool that someone else made, and a container that fills it.
func TestFullPool(t *testing.T) {
	data, metadata := vmtest.Disk(t, 0), vmtest.Disk(t, 1)
	vmtest.Run(t, "modprobe", "dm-thin-pool")
	vmtest.Run(t, "dmsetup", "create", "tp", "--table",
		"0 393216 thin-pool "+metadata+" "+data+" 128 0 2 skip_block_zeroing error_if_no_space")
	vmtest.Deferred(t, "dmsetup", "remove", "tp")
	for _, fs := range []string{fsXFS} {
		s := newVMStore(t, map[string]string{optPool: "tp", optFS: fs, optBaseSize: "320M"})
		if rep := Factory().Probe(t.Context(), s.options); !rep.Usable || !strings.Contains(rep.Why, "tp") ||
			rep.Warning != "" {
			t.Errorf("probe: %+v", rep)
		}
		d := s.open()
		must(t, d.CreateReadWrite(t.Context(), "c", "", nil))
		must(t, d.CreateReadWrite(t.Context(), "other", "", nil))
		root, err := d.Get(t.Context(), "c", nil)
		must(t, err)
		f, err := os.Create(filepath.Join(root, "big"))
		must(t, err)
		piece := make([]byte, 1<<20)
		for i := range piece {
			piece[i] = byte(i * i >> 3)
		}
		for n := 0; err == nil && n < 320; n++ {
			if _, err = f.Write(piece); err == nil {
				err = f.Sync()
			}
		}
		if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EIO) {
			t.Errorf("wrote more than the pool has: %v", err)
		}
		must(t, f.Close())
		wants(t, "create in a full pool", d.Create(t.Context(), "l", "", nil), ErrPoolFull)
		err = d.Put(t.Context(), "c")
		if err != nil {
			wants(t, "unmount", err, ErrPoolFull)
		}
		for d.Put(t.Context(), "c") == nil {
			continue
		}
		must(t, d.Remove(t.Context(), "c"))
		// There is room again.
		must(t, d.Create(t.Context(), "l", "", nil))
		must(t, d.Fill(t.Context(), "l", fillFile("1")))
		root, err = d.Get(t.Context(), "other", nil)
		must(t, err)
		must(t, fillFile("2")(root))
		must(t, d.Put(t.Context(), "other"))
		must(t, d.Close())
	}
}

// A mount that another namespace has copied, and that is in use there, keeps a device; the layer can be removed
// nevertheless, and the device goes later. One that is only there goes with the layer's own.
func TestCopiedMount(t *testing.T) {
	s := newVMStore(t, map[string]string{optFS: fsExt4, optBaseSize: "64M", optLoopData: "512M", optLoopMeta: "8M"})
	// A file system of its own for the sparse files: tmpfs has no direct I/O.
	mnt := fileSystem(t, 0, fsExt4)
	s.options.Home = filepath.Join(mnt, "home")
	d := s.open()
	must(t, d.CreateReadWrite(t.Context(), "c", "", nil))
	root, err := d.Get(t.Context(), "c", nil)
	must(t, err)
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c",
		`cd "$1"; echo ready; read x; cd /; echo out; read x`, "sh", root)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		_ = cmd.Wait()
	})
	said := bufio.NewReader(out)
	_, err = said.ReadString('\n')
	must(t, err)
	must(t, d.Put(t.Context(), "c"))
	device := d.deviceName(1)
	info, err := d.dm.stat(device)
	must(t, err)
	if !info.Leaving {
		t.Errorf("device %+v, which is in use, is not to be removed later", info)
	}
	must(t, d.Remove(t.Context(), "c"))
	same := layers(t, d)
	if len(same) > 0 || len(d.inState(stateLeaving)) != 1 {
		t.Errorf("layers %v, to be deleted %v", same, d.inState(stateLeaving))
	}
	_, err = io.WriteString(in, "\n")
	must(t, err)
	_, err = said.ReadString('\n')
	must(t, err)
	must(t, d.Cleanup(t.Context()))
	if left := d.inState(stateLeaving); len(left) > 0 {
		t.Errorf("to be deleted: %v", left)
	}
	names, err := d.dm.list()
	must(t, err)
	if slices.Contains(names, device) {
		t.Error("the device is still there")
	}
	must(t, d.Close())
	checkMetadata(t, filepath.Join(s.options.Home, metadataFile), 1)
}
