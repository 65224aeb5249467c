package fuzz

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"testing"

	"github.com/cespare/xxhash/v2"

	"plyfs/metadata"
)

// FuzzDecodeDir holds that whatever stands under a right checksum is decoded or damaged, and nothing else; without one
// it is damaged.
func FuzzDecodeDir(f *testing.F) {
	for _, r := range sampleRecords() {
		b, err := r.Encode(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:len(b)-8], "usr", uint8(1))
	}
	f.Fuzz(func(t *testing.T, body []byte, name string, at uint8) {
		d, err := metadata.DecodeDir(binary.LittleEndian.AppendUint64(bytes.Clone(body), xxhash.Sum64(body)))
		if err != nil {
			mustBeDamaged(t, err)
			return
		}
		var e metadata.Entry
		_, err = d.Find(name, &e)
		mustBeDamaged(t, err)
		if d.Len() > 0 {
			i := int(at) % d.Len()
			mustBeDamaged(t, d.At(i, &e))
			_, _, _, _, err := d.NameAt(i)
			mustBeDamaged(t, err)
		}
		bad := binary.LittleEndian.AppendUint64(bytes.Clone(body), xxhash.Sum64(body)+1)
		if _, err := metadata.DecodeDir(bad); err == nil {
			t.Error("a wrong checksum is taken")
		}
	})
}

func mustBeDamaged(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, metadata.ErrDamaged) {
		t.Errorf("%v, want ErrDamaged", err)
	}
}

// FuzzRoundTrip holds that a record that is taken comes back as it was.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("some names and numbers"), "a", "b", int64(1), uint64(2), uint32(0o100644), uint16(0))
	f.Add([]byte{255, 0, 1}, "..", "c/d", int64(-1), uint64(1)<<63, uint32(0o40755), uint16(0xffff))
	f.Add([]byte{}, "same", "same", int64(0), uint64(0), uint32(0), uint16(1))
	f.Fuzz(func(t *testing.T, value []byte, one, two string, sec int64, number uint64, mode uint32, bits uint16) {
		at := metadata.Time{Sec: sec, Nsec: uint32(number)}
		flag := func(i int) bool { return bits>>i&1 != 0 }
		e := metadata.Entry{
			Name: one, Ask: flag(0), Special: flag(1), First: int32(bits >> 2 & 1), Mode: mode, UID: mode >> 3, GID: mode >> 5,
			Nlink: uint32(number >> 7), Blksize: mode >> 9, Ino: number, Size: number >> 3, Blocks: number >> 9, Rdev: number << 3,
			Mtime: at, Target: two, Subdirs: int32(sec),
		}
		if flag(3) {
			e.Atime, e.Ctime, e.Btime = at, metadata.Time{Sec: sec + 1}, at
		}
		if flag(4) {
			e.Below = []int32{int32(bits >> 5 & 3), int32(bits >> 7 & 3)}
		}
		if flag(9) {
			e.Xattrs = []metadata.Xattr{{Name: two, Value: value}, {Name: two + "x", Value: nil}}
		}
		second := e
		second.Name, second.Ino, second.Mtime.Sec = two, number+1, -sec
		r := metadata.Record{
			Lowers: []metadata.Lower{
				{Path: one, Stamp: metadata.Stamp{Ino: number, Size: number, Mtime: at, Ctime: at}},
				{Layer: 7, Path: two, XWhiteouts: flag(10), Specials: flag(11)},
			},
			Entries: []metadata.Entry{e, second},
		}
		b, err := r.Encode(nil)
		if err != nil {
			if !errors.Is(err, metadata.ErrInvalid) {
				t.Errorf("%v, want ErrInvalid", err)
			}
			return
		}
		d, err := metadata.DecodeDir(b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(d.Lowers, r.Lowers) {
			t.Errorf("%+v, want %+v", d.Lowers, r.Lowers)
		}
		for _, want := range r.Entries {
			var got metadata.Entry
			if ok, err := d.Find(want.Name, &got); !ok || err != nil {
				t.Fatalf("%q: %v, %v", want.Name, ok, err)
			}
			if want = recorded(want); !reflect.DeepEqual(got, want) {
				t.Errorf("\n%+v, want\n%+v", got, want)
			}
		}
	})
}

// recorded is what comes back of an entry.
func recorded(e metadata.Entry) metadata.Entry {
	if e.Ask {
		return metadata.Entry{Name: e.Name, First: e.First, Ask: true, Mode: e.Mode & 0o170000, Ino: e.Ino, Below: e.Below}
	}
	e.NoXattrs = len(e.Xattrs) == 0
	for i, x := range e.Xattrs {
		if len(x.Value) > metadata.MaxXattrValue {
			e.Xattrs[i].Value = nil
		}
	}
	return e
}

func sampleRecords() []metadata.Record {
	stamp := metadata.Stamp{Ino: 5, Size: 4096, Mtime: metadata.Time{Sec: 1700000000}, Ctime: metadata.Time{Sec: 1700000001, Nsec: 7}}
	lowers := []metadata.Lower{{Stamp: stamp}, {Layer: 3, Path: "x", XWhiteouts: true, Specials: true, Stamp: stamp}}
	return []metadata.Record{
		{},
		{Lowers: lowers},
		{Lowers: lowers, Entries: []metadata.Entry{
			{Name: "usr", Mode: 0o40755, Nlink: 2, Below: []int32{0, 1}, Subdirs: 2, Btime: metadata.Time{Sec: 1}},
			{Name: "sh", Mode: 0o120777, Nlink: 1, Target: "dash", Ino: 9, First: 1},
			{Name: "dev", Mode: 0o20600, Rdev: 0x105, Size: 10, Blocks: 1, Atime: metadata.Time{Sec: 2, Nsec: 3}},
			{Name: "ask", Ask: true, Mode: 0o100000, Ino: 1 << 60},
			{Name: "x", Mode: 0o100644, Special: true, Xattrs: []metadata.Xattr{
				{Name: "security.selinux", Value: []byte("label\x00")}, {Name: "user.large"}, {Name: "user.none", Value: []byte{}},
			}},
		}},
	}
}
