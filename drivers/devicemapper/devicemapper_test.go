//go:build !vm

package devicemapper

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/testenv"
)

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n\t%s\nwant\n\t%s", what, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func TestCommands(t *testing.T) {
	s := newFakeStore(t)
	at := 0
	var d *Driver
	step := func(what string, err error, want ...string) {
		t.Helper()
		must(t, err)
		same(t, what, s.since(at, d), want)
		at = s.count()
	}
	d = s.open()
	step("begin a store", nil,
		"record pool", "attach metadata", "attach data",
		"create pool", "load pool: 0 209715200 thin-pool 7:1 7:2 128 0 2 skip_block_zeroing error_if_no_space",
		"resume pool",
		"record transaction", "message pool: set_transaction_id 0 1",
		"record transaction", "message pool: create_thin 0", "message pool: set_transaction_id 1 2", "record device-0",
		"create 0", "load 0: 0 20971520 thin 252:3 0", "resume 0", `mkfs ext4 "quota,project" []`,
		"mount ext4 discard,prjquota 0 at mnt/.base", `mkfs ext4 "" []`,
		"mount ext4 discard 0 at mnt/.base", "unmount mnt/.base", "flush",
		"remove 0", "record device-0")
	step("a layer without parent", d.Create(t.Context(), "base", "", nil),
		"record transaction", "message pool: create_snap 1 0", "message pool: set_transaction_id 2 3",
		"record device-1")
	step("unpack", d.Fill(t.Context(), "base", fillFile("1")),
		"record device-1", "create 1", "load 1: 0 20971520 thin 252:3 1", "resume 1",
		"mount ext4 discard 0 at mnt/base", "unmount mnt/base", "flush",
		"remove 1", "record device-1")
	step("a larger layer", d.CreateReadWrite(t.Context(), "c", "base",
		&drivers.CreateOptions{Quota: drivers.Quota{Bytes: 20 << 30}, MountLabel: "l:1,2"}),
		"record transaction", "message pool: create_snap 2 1", "message pool: set_transaction_id 3 4",
		"record device-2",
		"create 2", "load 2: 0 41943040 thin 252:3 2", "resume 2", `mount ext4 discard,context="l:1,2" 0 at mnt/c`,
		"grow ext4 at mnt/c to 21474836480", "unmount mnt/c", "flush", "remove 2", "record device-2")
	_, err := d.Get(t.Context(), "c", nil)
	step("mount", err, "create 2", "load 2: 0 41943040 thin 252:3 2", "resume 2",
		`mount ext4 discard,context="l:1,2" 0 at mnt/c`)
	step("a child of what is mounted", d.Create(t.Context(), "child", "c", nil),
		"suspend 2", "record transaction", "message pool: create_snap 3 2", "message pool: set_transaction_id 4 5",
		"record device-3", "resume 2")
	step("sync", d.Sync(t.Context(), "c", "base"))
	step("unmount", d.Put(t.Context(), "c"), "unmount mnt/c", "flush", "remove 2")
	step("remove", d.Remove(t.Context(), "c"), "remove 2", "record device-2",
		"create 2", "load 2: 0 41943040 thin 252:3 2", "resume 2", "discard", "remove 2",
		"record transaction", "message pool: delete 2", "message pool: set_transaction_id 5 6", "no record device-2")
	step("remove what is not there", d.Remove(t.Context(), "c"))
	_, err = d.Get(t.Context(), "child", nil)
	step("mount an image", err, "create 3", "load 3: 0 41943040 thin 252:3 3", "resume 3",
		"mount ext4 discard 1 at mnt/child")
	step("cleanup", d.Cleanup(t.Context()))
	step("close while in use", d.Close(), "remove pool")
	d = s.open()
	step("open again", nil)
	step("put", d.Put(t.Context(), "child"), "unmount mnt/child", "flush", "remove 3")
	step("close", d.Close(), "remove pool")
	d = s.open()
	step("open a pool that is gone", nil, "attach metadata", "attach data", "create pool",
		"load pool: 0 209715200 thin-pool 7:10 7:11 128 0 2 skip_block_zeroing error_if_no_space", "resume pool")
	s.checkNothingLeaks(d)
}

// Every call of every operation fails once, before or after its work; or it and all later ones fail, as for a process
// that is killed. After a restart, also one of the machine, the store is as if the operation had not been begun, or
// as if it were done, and the pool has no device that the records do not have.
func TestEveryCallFails(t *testing.T) {
	broken := errors.New("broken off")
	quota := &drivers.CreateOptions{Quota: drivers.Quota{Bytes: 20 << 30}}
	before := []string{"base< false", "c<base true", "fresh<base false"}
	for _, op := range []struct {
		name string
		run  func(d *Driver) error
		// done is what List names when it is done; without it, "before".
		done []string
		// gone may be there no more after a failure.
		gone string
	}{
		{"create", func(d *Driver) error { return d.Create(t.Context(), "new", "", nil) }, append(slices.Clone(before),
			"new< false"), ""},
		{
			"child", func(d *Driver) error { return d.CreateReadWrite(t.Context(), "new", "base", nil) },
			append(slices.Clone(before), "new<base true"), "",
		},
		{
			"larger child", func(d *Driver) error { return d.CreateReadWrite(t.Context(), "new", "base", quota) },
			append(slices.Clone(before), "new<base true"), "",
		},
		{"child of what is mounted", func(d *Driver) error {
			if _, err := d.Get(t.Context(), "c", nil); err != nil {
				return err
			}
			return errors.Join(d.CreateReadWrite(t.Context(), "new", "c", nil), d.Put(t.Context(), "c"))
		}, append(slices.Clone(before), "new<c true"), ""},
		{"remove", func(d *Driver) error { return d.Remove(t.Context(), "c") }, []string{
			"base< false",
			"fresh<base false",
		}, ""},
		{
			"fill", func(d *Driver) error { return d.Fill(t.Context(), "fresh", fillFile("filled")) }, before,
			"fresh<base false",
		},
		{"fill badly", func(d *Driver) error {
			if err := d.Fill(t.Context(), "fresh", func(string) error { return broken }); !errors.Is(err, broken) {
				return err
			}
			return nil
		}, []string{"base< false", "c<base true"}, "fresh<base false"},
		{"write", func(d *Driver) error {
			root, err := d.Get(t.Context(), "c", nil)
			if err != nil {
				return err
			}
			return errors.Join(fillFile("written")(root), d.Put(t.Context(), "c"))
		}, before, ""},
		{"clean up", func(d *Driver) error { return d.Cleanup(t.Context()) }, before, ""},
		{"close", func(d *Driver) error { return d.Close() }, before, ""},
	} {
		for _, how := range []string{"before", "after", "on"} {
			t.Run(op.name+"/"+how, func(t *testing.T) {
				for n := 1; ; n++ {
					s := newFakeStore(t)
					d := s.open()
					must(t, d.Create(t.Context(), "base", "", nil))
					must(t, d.Fill(t.Context(), "base", fillFile("base")))
					must(t, d.CreateReadWrite(t.Context(), "c", "base", nil))
					must(t, d.Create(t.Context(), "fresh", "base", nil))
					calls := s.count()
					s.failAt(n, how)
					err := op.run(d)
					ran := s.count() - calls
					s.heal()
					if ran < n {
						must(t, err)
						if op.name == "close" {
							d = nil
						}
						s.checkFailed(d, n, err, before, op.done, "")
						return
					}
					if n%2 == 0 {
						s.reboot()
					}
					s.checkFailed(nil, n, err, before, op.done, op.gone)
				}
			})
		}
	}
}

// checkFailed checks a store after the n-th call failed, with err as the result of the operation. Without d it is
// opened.
func (s *fakeStore) checkFailed(d *Driver, n int, err error, before, done []string, gone string) {
	s.t.Helper()
	if d == nil {
		d = s.open()
		must(s.t, d.Cleanup(s.t.Context()))
	}
	for _, id := range []string{"c", "new", "fresh"} {
		for d.Put(s.t.Context(), id) == nil {
			continue
		}
	}
	must(s.t, d.Cleanup(s.t.Context()))
	got := layers(s.t, d)
	without := slices.DeleteFunc(slices.Clone(before), func(l string) bool { return l == gone })
	if err == nil && !slices.Equal(got, done) || !slices.Equal(got, done) && !slices.Equal(got, before) &&
		!slices.Equal(got, without) {
		s.t.Errorf("after a failure of call %d (%v) there are %q; before %q, wanted %q", n, err, got, before, done)
	}
	s.checkNothingLeaks(d)
	for _, l := range got {
		id, _, _ := strings.Cut(l, "<")
		root, err := d.Get(s.t.Context(), id, nil)
		must(s.t, err)
		b, err := os.ReadFile(filepath.Join(root, "f"))
		if want := []string{"base", "filled", "written"}; (err != nil || !slices.Contains(want, string(b))) &&
			!strings.HasSuffix(l, "new< false") {
			s.t.Errorf("after a failure of call %d, layer %s has %q, %v", n, id, b, err)
		}
		must(s.t, d.Put(s.t.Context(), id))
	}
	must(s.t, d.Remove(s.t.Context(), "new"))
	must(s.t, d.Close())
	if left, err := os.ReadDir(filepath.Join(s.home, mountDir)); err != nil || len(left) > 0 {
		s.t.Errorf("left after a failure of call %d: %v, %v", n, left, err)
	}
}

// A beginning that fails at any call is made up for by the next.
func TestOpenFails(t *testing.T) {
	for _, how := range []string{"before", "after", "on"} {
		for n := 1; ; n++ {
			s := newFakeStore(t)
			s.failAt(n, how)
			d, err := s.tryOpen()
			ran := s.count()
			s.heal()
			if ran < n {
				must(t, err)
				break
			}
			if err == nil {
				// What failed was made up for at once.
				must(t, d.Close())
			}
			d = s.open()
			must(t, d.Cleanup(t.Context()))
			must(t, d.Create(t.Context(), "l", "", nil))
			s.checkNothingLeaks(d)
			must(t, d.Close())
			if len(s.devices) > 0 {
				t.Errorf("%s %d: devices left: %v", how, n, s.devices)
			}
		}
	}
}

// Records and pool that do not belong together are both left alone.
func TestForeignPool(t *testing.T) {
	s := newFakeStore(t)
	d := s.open()
	must(t, d.Create(t.Context(), "l", "", nil))
	must(t, d.Close())
	for _, p := range s.pools {
		p.transaction += 2
	}
	_, err := s.tryOpen()
	wants(t, "a pool that went on", err, drivers.ErrDamaged)
	for _, p := range s.pools {
		p.transaction = 0
	}
	_, err = s.tryOpen()
	wants(t, "another pool", err, drivers.ErrDamaged)
	if in := s.thin(); len(in) != 2 {
		t.Errorf("devices left in the pool: %v", in)
	}
	must(t, os.Remove(filepath.Join(s.home, "ledger", keyPool)))
	_, err = s.tryOpen()
	wants(t, "no record of the pool", err, drivers.ErrDamaged)

	// A new store does not take over what others use.
	other := newFakeStore(t)
	o := other.open()
	for _, p := range other.pools {
		p.usedData = 7
	}
	must(t, os.RemoveAll(filepath.Join(other.home, "ledger")))
	other.given = map[string]string{optFS: fsExt4, optPool: o.poolName}
	_, err = other.tryOpen()
	wants(t, "a pool in use", err, drivers.ErrInvalid)
	if err != nil && !strings.Contains(err.Error(), "not empty") {
		t.Error(err)
	}
}

// A ledger that is empty, or another one, is no reason to begin anew over what is there.
func TestLostLedger(t *testing.T) {
	s := newFakeStore(t)
	d := s.open()
	must(t, d.Create(t.Context(), "l", "", nil))
	must(t, d.Close())
	ledger := filepath.Join(s.home, "ledger")
	must(t, os.Rename(ledger, ledger+".away"))
	_, err := s.tryOpen()
	wants(t, "no ledger", err, drivers.ErrDamaged)
	must(t, os.RemoveAll(ledger))
	must(t, os.Rename(ledger+".away", ledger))
	d = s.open()
	same(t, "layers", layers(t, d), []string{"l< false"})
	s.checkNothingLeaks(d)
}

func TestLostFiles(t *testing.T) {
	s := newFakeStore(t)
	must(t, s.open().Close())
	must(t, os.Remove(filepath.Join(s.home, dataFile)))
	_, err := s.tryOpen()
	wants(t, "no data", err, drivers.ErrDamaged)
}

func TestExternalPool(t *testing.T) {
	maker := newFakeStore(t)
	pool := maker.open().poolName
	for _, p := range maker.pools {
		// As if someone had just made it.
		p.transaction = 0
		clear(p.thin)
		must(t, os.RemoveAll(p.dir))
		must(t, os.Mkdir(p.dir, 0o700))
	}
	s := &fakeStore{fake: maker.fake, home: filepath.Join(testenv.Scratch(t), "home"), run: maker.run}
	s.given = map[string]string{optFS: fsExt4, optPool: "/dev/mapper/none"}
	_, err := s.tryOpen()
	wants(t, "no pool", err, drivers.ErrPrerequisites)
	// What was said before there was a pool does not count.
	s.given[optPool] = mapperDir + "/" + pool
	d := s.open()
	must(t, d.Create(t.Context(), "l", "", nil))
	n := s.count()
	must(t, d.Remove(t.Context(), "l"))
	for _, call := range s.since(n, d) {
		if call == "discard" {
			t.Error("discarded on block devices unasked")
		}
	}
	must(t, d.Close())
	if s.devices[pool] == nil {
		t.Error("the pool is gone, and was not the driver's")
	}
	s.given[optPool] = "other"
	_, err = s.tryOpen()
	wants(t, "another pool", err, drivers.ErrInvalid)
}

func TestBlockDevices(t *testing.T) {
	s := newFakeStore(t)
	dir := testenv.Scratch(t)
	s.given[optData], s.given[optMetadata] = filepath.Join(dir, "data"), filepath.Join(dir, "meta")
	for _, name := range []string{"data", "meta"} {
		must(t, os.WriteFile(filepath.Join(dir, name), append([]byte("no blank"), make([]byte, 1<<20)...), 0o600))
	}
	_, err := s.tryOpen()
	wants(t, "devices that are not blank", err, drivers.ErrInvalid)
	for _, name := range []string{"data", "meta"} {
		must(t, os.WriteFile(filepath.Join(dir, name), make([]byte, 4<<20), 0o600))
	}
	d := s.open()
	must(t, d.Create(t.Context(), "l", "", nil))
	must(t, d.Close())
	d = s.open()
	same(t, "layers", layers(t, d), []string{"l< false"})
	pairs, err := d.Status(t.Context())
	must(t, err)
	if !slices.Contains(pairs, drivers.Pair{Label: "Data device", Value: s.given[optData]}) {
		t.Errorf("status %v", pairs)
	}
}

// A device that something outside has open goes later.
func TestDeferredRemoval(t *testing.T) {
	s := newFakeStore(t)
	d := s.open()
	must(t, d.CreateReadWrite(t.Context(), "c", "", nil))
	_, err := d.Get(t.Context(), "c", nil)
	must(t, err)
	device := s.devices[d.deviceName(1)]
	s.opened[device.dev]++
	must(t, d.Put(t.Context(), "c"))
	if !device.leaving {
		t.Error("the device is not to be removed")
	}
	// It is used again meanwhile.
	_, err = d.Get(t.Context(), "c", nil)
	must(t, err)
	if device.leaving {
		t.Error("a device that is in use is to be removed")
	}
	must(t, d.Put(t.Context(), "c"))
	must(t, d.Remove(t.Context(), "c"))
	same(t, "layers", layers(t, d), nil)
	// The name is free, the number not.
	must(t, d.CreateReadWrite(t.Context(), "c", "", nil))
	if in := s.thin(); len(in) != 3 {
		t.Errorf("devices in the pool: %v", in)
	}
	d = s.open()
	must(t, d.Cleanup(t.Context()))
	s.opened[device.dev] = 0
	must(t, d.Cleanup(t.Context()))
	s.checkNothingLeaks(d)
	same(t, "layers", layers(t, d), []string{"c< true"})

	s.given[optLater] = "false"
	d = s.open()
	d.busyWait = 0
	_, err = d.Get(t.Context(), "c", nil)
	must(t, err)
	device = s.devices[d.deviceName(2)]
	s.opened[device.dev]++
	must(t, d.Put(t.Context(), "c"))
	wants(t, "remove what is open elsewhere", d.Remove(t.Context(), "c"), drivers.ErrInUse)
	d.busyWait = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		// Once it has been tried, nobody wants it any more.
		for n := s.count(); s.count() <= n+1; {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	wants(t, "cancelled", d.Remove(ctx, "c"), context.Canceled)
	s.opened[device.dev] = 0
	must(t, d.Remove(t.Context(), "c"))
	s.checkNothingLeaks(d)
}

// A process that dies while a parent is suspended leaves its users hanging until Cleanup.
func TestLeftSuspended(t *testing.T) {
	s := newFakeStore(t)
	d := s.open()
	must(t, d.CreateReadWrite(t.Context(), "c", "", nil))
	_, err := d.Get(t.Context(), "c", nil)
	must(t, err)
	n := s.count()
	must(t, d.Create(t.Context(), "try", "c", nil))
	resume := slices.Index(s.since(n, d), "resume 1") + 1
	s.failAt(resume, "on")
	if err := d.Create(t.Context(), "child", "c", nil); err == nil {
		t.Error("resuming failed, Create did not")
	}
	s.heal()
	if !s.devices[d.deviceName(1)].suspended {
		t.Fatal("the device is not suspended")
	}
	d = s.open()
	must(t, d.Cleanup(t.Context()))
	if s.devices[d.deviceName(1)].suspended {
		t.Error("the device is still suspended")
	}
	must(t, d.Put(t.Context(), "c"))
	s.checkNothingLeaks(d)
}

// A device that no record names is in nobody's way.
func TestUnknownDevice(t *testing.T) {
	s := newFakeStore(t)
	d := s.open()
	must(t, s.message(d.poolName, msgCreateThin(1)))
	must(t, d.Create(t.Context(), "l", "", nil))
	s.checkNothingLeaks(d)
}

func TestPoolFull(t *testing.T) {
	s := newFakeStore(t)
	d := s.open()
	must(t, d.Create(t.Context(), "l", "", nil))
	var pool *fakePool
	for _, pool = range s.pools {
		break
	}
	pool.usedData = pool.totalData * 91 / 100
	err := d.Create(t.Context(), "m", "l", nil)
	wants(t, "create in a full pool", err, ErrPoolFull)
	wants(t, "create in a full pool", err, unix.ENOSPC)
	wants(t, "fill in a full pool", d.Fill(t.Context(), "l", nil), ErrPoolFull)
	must(t, d.Remove(t.Context(), "l"))
	for status, want := range map[string]error{
		"Fail": drivers.ErrDamaged,
		"4 9/10 1/10 - ro discard_passdown error_if_no_space - 1":              drivers.ErrDamaged,
		"4 9/10 1/10 - rw discard_passdown error_if_no_space needs_check 1":    drivers.ErrDamaged,
		"4 1/100 10/10 - out_of_data_space discard_passdown error_if_no_space": ErrPoolFull,
		"4 100/100 1/10 - rw no_discard_passdown queue_if_no_space - 1":        ErrPoolFull,
		"4 x/100 1/10 - rw": drivers.ErrDamaged,
		"4 1 1/10 - rw":     drivers.ErrDamaged,
		"-":                 drivers.ErrDamaged,
	} {
		pool.status = status
		wants(t, status, d.Create(t.Context(), "m", "", nil), want)
	}
	pool.status = ""
	pool.usedData = 0
	must(t, d.Create(t.Context(), "m", "", nil))
	s.checkNothingLeaks(d)
}

func TestProbe(t *testing.T) {
	for what, c := range map[string]struct {
		given map[string]string
		why   string
		fails int
	}{
		"sparse files": {map[string]string{optFS: fsExt4}, "", 0},
		"no pool":      {map[string]string{optPool: "none"}, "none", 0},
		"no devices":   {map[string]string{optData: "/nonexistent/a", optMetadata: "/nonexistent/b"}, "nonexistent", 0},
		"no loop":      {map[string]string{optFS: fsExt4}, "attach", 1},
	} {
		t.Run(what, func(t *testing.T) {
			f := newFake(t)
			home := testenv.Scratch(t)
			opts, err := parseOptions(c.given)
			must(t, err)
			if c.fails > 0 {
				f.failAt(c.fails, "on")
			}
			rep := probeWith(t.Context(), drivers.Options{Home: filepath.Join(home, "a", "b")}, opts, f, f)
			if rep.Usable != (c.why == "") || !strings.Contains(rep.Why, c.why) || rep.Todo == "" || rep.Usable &&
				rep.Warning == "" {
				t.Errorf("%+v", rep)
			}
			if left, err := os.ReadDir(home); err != nil || len(left) > 0 || len(f.devices) > 0 {
				t.Errorf("left: %v, %v, %v", left, err, f.devices)
			}
		})
	}
	// Where there is no device mapper, the report says so; where there is, it was tried.
	rep := probe(t.Context(), drivers.Options{Home: testenv.Scratch(t)})
	if rep.Why == "" || !rep.Usable && rep.Todo == "" {
		t.Errorf("%+v", rep)
	}
	if rep := probe(t.Context(), drivers.Options{Options: map[string]string{"x": "y"}}); rep.Usable ||
		!strings.Contains(rep.Why, "option x") {
		t.Errorf("%+v", rep)
	}
}
