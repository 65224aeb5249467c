//go:build !vm

package devicemapper

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

func TestOptions(t *testing.T) {
	for _, bad := range []map[string]string{
		{"size": "1"},
		{optBaseSize: "1K"},
		{optBaseSize: "x"},
		{optBaseSize: "99999999999999999999"},
		{optBaseSize: "9999999T"},
		{optBlock: "65K"},
		{optBlock: "2G"},
		{optFS: "btrfs"},
		{optMount: "discard,nouuid"},
		{optMount: "ro"},
		{optMinFree: "100%"},
		{optMinFree: "x"},
		{optLater: "maybe"},
		{optDiscard: "maybe"},
		{optPool: ""},
		{optPool: "/dev/vg/lv"},
		{optData: "/dev/x"},
		{
			optData:     "/dev/x",
			optMetadata: "/dev/x",
		},
		{optData: "x", optMetadata: "/dev/x"},
		{
			optPool: "p", optData: "/dev/x",
			optMetadata: "/dev/y",
		},
		{optLoopMeta: "1M"},
	} {
		_, err := parseOptions(bad)
		wants(t, fmt.Sprint(bad), err, drivers.ErrInvalid)
	}
	o, err := parseOptions(map[string]string{
		optBaseSize: "512m", optBlock: "128K", optMinFree: "5%", optMkfs: "-i 8192", optMount: "noatime,discard",
		optLoopData: "1T", optDiscard: "1",
	})
	must(t, err)
	if o.baseSize != 512<<20 || o.blockSize != 128<<10 || o.minFree != 5 || !slices.Equal(o.mkfsArgs, []string{
		"-i",
		"8192",
	}) || o.loopData != 1<<40 ||
		o.discard != "true" {
		t.Errorf("options %+v", o)
	}
	if _, err := chooseFS(options{fs: fsXFS, baseSize: minXFS - 1}); !errors.Is(err, drivers.ErrInvalid) {
		t.Errorf("small xfs: %v", err)
	}
	if fs, err := chooseFS(options{baseSize: minXFS - 1}); err != nil || fs != fsExt4 {
		t.Errorf("small file system: %s, %v", fs, err)
	}
	flags, data := splitOptions(`noatime,discard,nodev,nouuid,context="a:b:c:s0,noexec"`)
	if flags != unix.MS_NOATIME|unix.MS_NODEV || data != `discard,nouuid,context="a:b:c:s0,noexec"` {
		t.Errorf("flags %d, data %s", flags, data)
	}
	same(t, "mkfs", mkfsCommand("/dev/dm-1", fsXFS, "", []string{"-m", "reflink=1"}), []string{
		"mkfs.xfs", "-q", "-f", "-K",
		"-m", "reflink=1", "/dev/dm-1",
	})
	same(t, "mkfs", mkfsCommand("/dev/dm-1", fsExt4, "quota,project", nil),
		[]string{
			"mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0",
			"-O", "quota,project", "/dev/dm-1",
		})
}

func TestRefusedOptions(t *testing.T) {
	s := newFakeStore(t)
	d := s.open()
	for what, c := range map[string]struct {
		o    drivers.CreateOptions
		want error
	}{
		"label":  {drivers.CreateOptions{MountLabel: `a"b`}, drivers.ErrInvalid},
		"option": {drivers.CreateOptions{Options: map[string]string{"x": "y"}}, drivers.ErrInvalid},
		"minus":  {drivers.CreateOptions{Quota: drivers.Quota{Bytes: -1}}, drivers.ErrInvalid},
		"inodes": {drivers.CreateOptions{Quota: drivers.Quota{Inodes: 1}}, drivers.ErrNotSupported},
		"small":  {drivers.CreateOptions{Quota: drivers.Quota{Bytes: 1 << 20}}, drivers.ErrNotSupported},
	} {
		wants(t, what, d.CreateReadWrite(t.Context(), "c", "", &c.o), c.want)
	}
	s.given[optFS] = fsXFS
	_, err := s.tryOpen()
	wants(t, "another file system", err, drivers.ErrInvalid)
	s.checkNothingLeaks(d)
}

// A larger base size counts for new containers, whatever their images are.
func TestLargerBaseSize(t *testing.T) {
	s := newFakeStore(t)
	d := s.open()
	must(t, d.Create(t.Context(), "base", "", nil))
	must(t, d.Close())
	s.given[optBaseSize] = "30G"
	d = s.open()
	must(t, d.Create(t.Context(), "image", "base", nil))
	must(t, d.CreateReadWrite(t.Context(), "c", "image", nil))
	for id, want := range map[string]string{"image": fmt.Sprint(10 << 30), "c": fmt.Sprint(30 << 30)} {
		m, err := d.Metadata(t.Context(), id)
		must(t, err)
		if m["size"] != want {
			t.Errorf("size of %s is %s, want %s", id, m["size"], want)
		}
	}
}

// Where the file system counts, it enforces quotas of any size, and a child of a layer with a quota has none.
func TestQuota(t *testing.T) {
	s := newFakeStore(t)
	s.quotas = true
	d := s.open()
	calls := s.since(0, d)
	for _, want := range []string{
		`mkfs ext4 "quota,project" []`, "mount ext4 discard,prjquota 0 at mnt/.base", "adopt mnt/.base",
	} {
		if !slices.Contains(calls, want) {
			t.Errorf("no call %q in %q", want, calls)
		}
	}
	quota := func(bytes, inodes int64) *drivers.CreateOptions {
		return &drivers.CreateOptions{Quota: drivers.Quota{Bytes: bytes, Inodes: inodes}}
	}
	for _, c := range []struct {
		id, parent string
		o          *drivers.CreateOptions
		want       []string
		size       uint64
	}{
		{"small", "", quota(1<<20, 0), []string{"limit mnt/small: 1048576 bytes, 0 inodes"}, 10 << 30},
		{"inodes", "", quota(0, 9), []string{"limit mnt/inodes: 0 bytes, 9 inodes"}, 10 << 30},
		{"large", "", quota(20<<30, 9), []string{
			"grow ext4 at mnt/large to 32212254720", "limit mnt/large: 21474836480 bytes, 9 inodes",
		}, 30 << 30},
		{"child", "large", nil, []string{"limit mnt/child: 0 bytes, 0 inodes"}, 30 << 30},
		{"grandchild", "child", nil, nil, 30 << 30},
	} {
		n := s.count()
		must(t, d.CreateReadWrite(t.Context(), c.id, c.parent, c.o))
		got := slices.DeleteFunc(s.since(n, d), func(call string) bool {
			return !strings.HasPrefix(call, "limit") && !strings.HasPrefix(call, "grow")
		})
		same(t, c.id, got, c.want)
		if u, err := d.Usage(t.Context(), c.id); err != nil || u.Inodes < 0 {
			t.Errorf("usage %+v, %v", u, err)
		}
		if r, err := d.lookup(c.id); err != nil || r.Size != c.size || r.State != stateReady {
			t.Errorf("layer %s: %+v, %v", c.id, r, err)
		}
	}
	s.checkNothingLeaks(d)
}
