package drivers_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/testenv"
)

// place is a mount point with what mounts there, and counts how often.
type place struct {
	target           string
	mounts, unmounts int
}

func newPlace(t *testing.T, dir string) *place {
	t.Helper()
	p := &place{target: filepath.Join(dir, "target")}
	must(t, os.Mkdir(p.target, 0o755))
	t.Cleanup(func() {
		for unix.Unmount(p.target, unix.MNT_DETACH) == nil {
			continue
		}
	})
	return p
}

func (p *place) mount() error {
	p.mounts++
	return unix.Mount("tmpfs", p.target, "tmpfs", 0, "size=64k")
}

func (p *place) unmount(target string) error {
	p.unmounts++
	return unix.Unmount(target, 0)
}

func openMounts(t *testing.T, dir string) *drivers.Mounts {
	t.Helper()
	m, err := drivers.OpenMounts(filepath.Join(dir, "mounts"))
	must(t, err)
	return m
}

func TestMountsCount(t *testing.T) {
	dir := testenv.Scratch(t)
	p, m := newPlace(t, dir), openMounts(t, dir)
	for i := range 3 {
		must(t, m.Get("l", p.target, drivers.GetOptions{}, p.mount))
		if m.Count("l") != i+1 || m.Target("l") != p.target {
			t.Errorf("count %d, target %s", m.Count("l"), m.Target("l"))
		}
	}
	for range 3 {
		must(t, m.Put("l", p.unmount))
	}
	if p.mounts != 1 || p.unmounts != 1 || m.Count("l") != 0 || m.Target("l") != "" {
		t.Errorf("%d mounts, %d unmounts, count %d", p.mounts, p.unmounts, m.Count("l"))
	}
	if err := m.Put("l", p.unmount); !errors.Is(err, drivers.ErrInvalid) {
		t.Error(err)
	}
}

// The next process knows the counts of the mounts that are there, and forgets those of mounts that are gone.
func TestMountsRestart(t *testing.T) {
	dir := testenv.Scratch(t)
	p, m := newPlace(t, dir), openMounts(t, dir)
	must(t, m.Get("l", p.target, drivers.GetOptions{ReadOnly: true}, p.mount), m.Get("l", p.target,
		drivers.GetOptions{ReadOnly: true}, p.mount))
	m = openMounts(t, dir)
	if m.Count("l") != 2 {
		t.Errorf("count %d after a restart", m.Count("l"))
	}
	if err := m.Get("l", p.target, drivers.GetOptions{}, p.mount); !errors.Is(err, drivers.ErrInUse) {
		t.Errorf("other options: %v", err)
	}
	must(t, m.Get("l", p.target, drivers.GetOptions{Any: true}, p.mount), m.Put("l", p.unmount))
	must(t, unix.Unmount(p.target, 0))
	must(t, m.Refresh())
	if m.Count("l") != 0 {
		t.Errorf("count %d of a mount that is gone", m.Count("l"))
	}
	if left, err := os.ReadDir(filepath.Join(dir, "mounts")); err != nil || len(left) > 0 {
		t.Errorf("records left: %v %v", left, err)
	}
}

// A clean-up beside a Get does not take away what that is about to have.
func TestMountsRefreshBesideGet(t *testing.T) {
	dir := testenv.Scratch(t)
	p, m := newPlace(t, dir), openMounts(t, dir)
	must(t, m.Get("l", p.target, drivers.GetOptions{}, func() error { return errors.Join(m.Refresh(), p.mount(), m.Refresh()) }))
	if m.Count("l") != 1 {
		t.Errorf("count %d", m.Count("l"))
	}
	if n := openMounts(t, dir); n.Count("l") != 1 {
		t.Errorf("count %d in the next process", n.Count("l"))
	}
	must(t, m.Put("l", func(target string) error { return errors.Join(p.unmount(target), m.Refresh()) }))
	if m.Count("l") != 0 {
		t.Errorf("count %d of a mount that was given back", m.Count("l"))
	}
}

// A mount that went away behind our back is made anew.
func TestMountsRemount(t *testing.T) {
	dir := testenv.Scratch(t)
	p, m := newPlace(t, dir), openMounts(t, dir)
	must(t, m.Get("l", p.target, drivers.GetOptions{}, p.mount), unix.Unmount(p.target, 0),
		m.Get("l", p.target, drivers.GetOptions{}, p.mount))
	if p.mounts != 2 || m.Count("l") != 1 {
		t.Errorf("%d mounts, count %d", p.mounts, m.Count("l"))
	}
	must(t, m.Put("l", p.unmount))
}

func TestMountsFailures(t *testing.T) {
	dir := testenv.Scratch(t)
	p, m := newPlace(t, dir), openMounts(t, dir)
	failure := errors.New("failure")
	if err := m.Get("l", p.target, drivers.GetOptions{}, func() error { return failure }); !errors.Is(err, failure) ||
		m.Count("l") != 0 {
		t.Error(err, m.Count("l"))
	}
	must(t, m.Get("l", p.target, drivers.GetOptions{}, p.mount))
	if err := m.Put("l", func(string) error { return failure }); !errors.Is(err, failure) || m.Count("l") != 1 {
		t.Error(err, m.Count("l"))
	}
	must(t, m.Put("l", p.unmount))
}

// A plain directory is in use until the process ends, and no longer.
func TestMountsPlain(t *testing.T) {
	dir := testenv.Scratch(t)
	m := openMounts(t, dir)
	must(t, m.Get("l", dir, drivers.GetOptions{}, func() error { return nil }), m.Get("l", dir, drivers.GetOptions{}, nil),
		m.Refresh())
	if m.Count("l") != 2 {
		t.Errorf("count %d", m.Count("l"))
	}
	if n := openMounts(t, dir); n.Count("l") != 0 {
		t.Errorf("count %d in the next process", n.Count("l"))
	}
}

// What cannot be read, or is of another boot, is dropped.
func TestMountsDamaged(t *testing.T) {
	dir := testenv.Scratch(t)
	p, m := newPlace(t, dir), openMounts(t, dir)
	must(t, m.Get("l", p.target, drivers.GetOptions{}, p.mount))
	at := filepath.Join(dir, "mounts")
	text, err := os.ReadFile(filepath.Join(at, "l"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(at, "torn"), text[:len(text)/2], 0o600), os.WriteFile(filepath.Join(at, ".l"), nil,
		0o600),
		os.WriteFile(filepath.Join(at, "otherboot"), []byte(`{"target":"`+p.target+`","count":1,"boot":"another"}`), 0o600))
	m = openMounts(t, dir)
	if m.Count("l") != 1 || m.Count("torn") != 0 || m.Count("otherboot") != 0 {
		t.Errorf("counts %d %d %d", m.Count("l"), m.Count("torn"), m.Count("otherboot"))
	}
	if left, err := os.ReadDir(at); err != nil || len(left) != 1 {
		t.Errorf("records left: %v %v", left, err)
	}
	must(t, m.Put("l", p.unmount))
}
