package drivertest

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

func quotaCases() []aCase {
	return []aCase{
		{"SetQuota", caseQuotaBytes},
		{"SetQuotaInodes", caseQuotaInodes},
		{"QuotaInvalid", caseQuotaInvalid},
	}
}

// The quotas of the cases. They are well above what a driver needs for its own, and for the image.
const (
	quotaBytes  = 16 << 20
	quotaInodes = 100
)

// withQuota makes a container with a quota; false if the driver has none of this kind, and says so as it must.
func (e *env) withQuota(q drivers.Quota, able bool) bool {
	e.Helper()
	e.image("base", "", baseSteps()...)
	err := e.d.CreateReadWrite(ctx(), "c", "base", &drivers.CreateOptions{Quota: q})
	if able {
		e.must(err)
		return true
	}
	e.wants(err, drivers.ErrNotSupported)
	e.exists("c", false)
	return false
}

// full says that err is what a quota that is reached gives: as the file system has it.
func full(err error) bool { return errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.ENOSPC) }

func caseQuotaBytes(e *env) {
	if !e.withQuota(drivers.Quota{Bytes: quotaBytes}, e.s.Abilities.QuotaBytes) {
		return
	}
	at := &place{root: e.get("c")}
	e.must(at.do(checkBase()))
	e.must(asUser(func() error { return os.WriteFile(at.path("fits"), noiseBytes(quotaBytes/4), 0o644) }))
	e.fills(at, "beyond")
	var st unix.Statfs_t
	e.must(unix.Statfs(at.root, &st))
	if size := int64(st.Blocks) * st.Bsize; size > quotaBytes*5/4 {
		e.Errorf("statfs shows a file system of %d bytes, the quota is %d", size, quotaBytes)
	}
	e.put("c")
	e.reopen()
	at.root = e.get("c")
	// Still full, until something is deleted.
	if err := asUser(func() error { return writeSynced(at.path("more"), quotaBytes/4) }); !full(err) {
		e.Errorf("wrote to a full layer: %v", err)
	}
	_ = os.Remove(at.path("more")) // which may not even have been made
	e.must(at.do([]step{remove("beyond")}))
	e.must(asUser(func() error { return writeSynced(at.path("again"), quotaBytes/4) }))
	e.put("c")
	u, err := e.d.Usage(ctx(), "c")
	e.must(err)
	if u.Bytes > quotaBytes {
		e.Errorf("the layer takes up %d bytes, the quota is %d", u.Bytes, quotaBytes)
	}
	// The quota is that of one layer.
	e.writable("free", "base")
	e.change("free", func(at *place) error { return os.WriteFile(at.path("big"), noiseBytes(quotaBytes+1<<20), 0o644) })
}

// fills writes until the quota is reached, and checks where that is.
func (e *env) fills(at *place, name string) {
	e.Helper()
	err := asUser(func() error { return writeSynced(at.path(name), 2*quotaBytes) })
	if !full(err) {
		e.Errorf("wrote twice the quota: %v", err)
	}
	var st unix.Stat_t
	e.must(unix.Stat(at.path(name), &st))
	if written := st.Blocks * 512; written > quotaBytes || written < quotaBytes/8 {
		e.Errorf("%d bytes could be written, the quota is %d", written, quotaBytes)
	}
}

// writeSynced writes noise piece by piece until it fails, and syncs.
func writeSynced(path string, size int) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	piece := noiseBytes(256 << 10)
	for off := 0; off < size && err == nil; off += len(piece) {
		_, err = f.Write(piece)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

func caseQuotaInodes(e *env) {
	if !e.withQuota(drivers.Quota{Inodes: quotaInodes}, e.s.Abilities.QuotaInodes) {
		return
	}
	at := &place{root: e.get("c")}
	defer e.put("c")
	made := 0
	err := asUser(func() error {
		for ; made < 2*quotaInodes; made++ {
			if err := os.WriteFile(at.path(fmt.Sprintf("n%d", made)), nil, 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	if !full(err) || made > quotaInodes || made < quotaInodes/2 {
		e.Errorf("%d files could be made, the quota is %d inodes: %v", made, quotaInodes, err)
	}
	e.must(at.do([]step{remove("n0", "n1", "n2")}))
	e.must(asUser(func() error { return os.WriteFile(at.path("again"), nil, 0o644) }))
}

func caseQuotaInvalid(e *env) {
	for _, q := range []drivers.Quota{{Bytes: -1}, {Inodes: -1}} {
		err := e.d.CreateReadWrite(ctx(), "c", "", &drivers.CreateOptions{Quota: q})
		if !errors.Is(err, drivers.ErrInvalid) && !errors.Is(err, drivers.ErrNotSupported) {
			e.Errorf("quota %+v: %v", q, err)
		}
		e.exists("c", false)
	}
}

// asUser calls f without the capability that lets root exceed quotas, which containers do not have.
func asUser(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and what it may not do with it.
		runtime.LockOSThread()
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&hdr, &data[0]); err != nil {
			done <- err
			return
		}
		data[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
		if err := unix.Capset(&hdr, &data[0]); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}
