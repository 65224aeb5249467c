package metadata

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

// pick returns one of the values.
func pick[T any](r *rand.Rand, values ...T) T { return values[r.IntN(len(values))] }

func anyTime(r *rand.Rand) Time {
	return pick(r, Time{}, Time{1, 0}, Time{-1, 999999999}, Time{math.MaxInt64, math.MaxUint32}, Time{math.MinInt64, 1},
		Time{1700000000 + r.Int64N(1000), r.Uint32N(1e9)})
}

func anyNumber(r *rand.Rand) uint64 {
	return pick(r, 0, 1, 4096, math.MaxUint64, r.Uint64(), uint64(r.IntN(1<<20)))
}

func anyString(r *rand.Rand, limit int) string {
	b := make([]byte, r.IntN(limit+1))
	for i := range b {
		b[i] = byte(r.IntN(256))
	}
	return string(b)
}

// anyEntry returns an entry that can be recorded.
func anyEntry(r *rand.Rand, i, lowers int) Entry {
	e := Entry{
		Name: fmt.Sprintf("%d%s", i, strings.NewReplacer("/", "", "\x00", "").Replace(anyString(r, 20))), First: int32(r.IntN(lowers)),
		Ask: r.IntN(8) == 0, Special: r.IntN(8) == 0,
		Mode: r.Uint32(), UID: pick(r, 0, r.Uint32()), GID: pick(r, 0, r.Uint32()), Nlink: pick(r, 0, 1, r.Uint32()),
		Blksize: pick(r, 4096, r.Uint32()),
		Ino:     anyNumber(r), Size: anyNumber(r), Blocks: anyNumber(r), Rdev: anyNumber(r),
		Mtime: anyTime(r), Target: pick(r, "", anyString(r, 300)), Subdirs: pick(r, 0, 1, math.MaxInt32, math.MinInt32, r.Int32()),
	}
	if r.IntN(2) == 0 {
		e.Blocks = pagesOf(e.Size)
	}
	e.Atime, e.Ctime = pick(r, e.Mtime, anyTime(r)), pick(r, e.Mtime, anyTime(r))
	e.Btime = pick(r, Time{}, e.Ctime, anyTime(r))
	if r.IntN(3) == 0 {
		e.Below = []int32{}
		for l := range lowers {
			if r.IntN(3) > 0 {
				e.Below = append(e.Below, int32(l))
			}
		}
	}
	for x := range r.IntN(4) {
		v := []byte(anyString(r, MaxXattrValue))
		e.Xattrs = append(e.Xattrs, Xattr{Name: fmt.Sprintf("user.%d%s", x, anyString(r, 5)), Value: pick(r, nil, []byte{}, v)})
	}
	return e
}

func anyRecord(r *rand.Rand) *Record {
	rec := &Record{}
	for range 1 + r.IntN(pick(r, 1, 4, 40)) {
		rec.Lowers = append(rec.Lowers, Lower{
			Layer: pick(r, 0, r.Int32()), Path: pick(r, "", "a/b", anyString(r, 40)),
			XWhiteouts: r.IntN(2) == 0, Specials: r.IntN(2) == 0,
			Stamp: Stamp{Ino: anyNumber(r), Size: anyNumber(r), Mtime: anyTime(r), Ctime: anyTime(r)},
		})
	}
	for i := range r.IntN(pick(r, 1, 5, 300)) {
		rec.Entries = append(rec.Entries, anyEntry(r, i, len(rec.Lowers)))
	}
	return rec
}

// smallRecord is one of which every byte can be tried.
func smallRecord(seed uint64) *Record {
	r := rand.New(rand.NewPCG(seed, 3))
	rec := &Record{Lowers: anyRecord(r).Lowers}
	rec.Lowers = rec.Lowers[:min(len(rec.Lowers), 5)]
	for i := range 12 {
		rec.Entries = append(rec.Entries, anyEntry(r, i, len(rec.Lowers)))
	}
	return rec
}

// recorded is what comes back of an entry.
func recorded(e Entry) Entry {
	if e.Ask {
		return Entry{Name: e.Name, First: e.First, Ask: true, Mode: e.Mode & unix.S_IFMT, Ino: e.Ino, Below: e.Below}
	}
	e.NoXattrs = len(e.Xattrs) == 0
	return e
}

func checkRoundTrip(t *testing.T, rec *Record) {
	t.Helper()
	b, err := rec.Encode([]byte("before"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := DecodeDir(b[len("before"):])
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(d.Lowers, rec.Lowers) {
		t.Fatalf("lowers\n%+v, want\n%+v", d.Lowers, rec.Lowers)
	}
	if d.Len() != len(rec.Entries) {
		t.Fatalf("%d entries, want %d", d.Len(), len(rec.Entries))
	}
	var e Entry
	for i := range rec.Entries {
		want := recorded(rec.Entries[i])
		if ok, err := d.Find(want.Name, &e); !ok || err != nil || !reflect.DeepEqual(e, want) {
			t.Fatalf("Find(%q) = %v, %v,\n%+v, want\n%+v", want.Name, ok, err, e, want)
		}
		if ok, err := d.Find(want.Name+"x", &e); ok || err != nil {
			t.Fatalf("Find finds %q: %v", want.Name+"x", err)
		}
	}
	last := ""
	for i := range d.Len() {
		if err := d.At(i, &e); err != nil {
			t.Fatal(err)
		}
		if i > 0 && (NameOffset(last) > NameOffset(e.Name) || NameOffset(last) == NameOffset(e.Name) && last >= e.Name) {
			t.Fatalf("%q stands behind %q", e.Name, last)
		}
		last = e.Name
		name, typ, ino, first, err := d.NameAt(i)
		if err != nil || name != e.Name || uint32(typ) != e.Mode>>12&15 || ino != e.Ino || first != e.First {
			t.Fatalf("NameAt(%d) = %q %d %d %d %v, want those of %+v", i, name, typ, ino, first, err, e)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		t.Run(fmt.Sprint(seed), func(t *testing.T) { checkRoundTrip(t, anyRecord(r)) })
	}
	t.Run("empty", func(t *testing.T) { checkRoundTrip(t, &Record{Lowers: []Lower{}}) })
}

func TestRoundTripOfManyEntries(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 5))
	rec := &Record{Lowers: smallRecord(1).Lowers}
	for i := range 100_000 {
		e := anyEntry(r, i, len(rec.Lowers))
		e.Name = fmt.Sprintf("name-%d", i)
		rec.Entries = append(rec.Entries, e)
	}
	checkRoundTrip(t, rec)
}

func TestLargeXattrsAreLeftOut(t *testing.T) {
	rec := &Record{Lowers: make([]Lower, 1), Entries: []Entry{{Name: "a", Xattrs: []Xattr{
		{"user.fits", make([]byte, MaxXattrValue)}, {"user.large", make([]byte, MaxXattrValue+1)},
	}}}}
	b, err := rec.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	d, err := DecodeDir(b)
	if err != nil {
		t.Fatal(err)
	}
	var e Entry
	if ok, err := d.Find("a", &e); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if e.NoXattrs || len(e.Xattrs) != 2 || len(e.Xattrs[0].Value) != MaxXattrValue || e.Xattrs[1].Value != nil {
		t.Errorf("attributes %v", e.Xattrs)
	}
}

func TestEncodeRefuses(t *testing.T) {
	one := make([]Lower, 1)
	for name, rec := range map[string]*Record{
		"twice":        {one, []Entry{{Name: "a"}, {Name: "a"}}},
		"empty name":   {one, []Entry{{}}},
		"itself":       {one, []Entry{{Name: "."}}},
		"parent":       {one, []Entry{{Name: ".."}}},
		"slash":        {one, []Entry{{Name: "a/b"}}},
		"zero byte":    {one, []Entry{{Name: "a\x00"}}},
		"no lower":     {nil, []Entry{{Name: "a"}}},
		"first":        {one, []Entry{{Name: "a", First: 1}}},
		"first below":  {one, []Entry{{Name: "a", First: -1}}},
		"layer":        {[]Lower{{Layer: -1}}, nil},
		"below":        {one, []Entry{{Name: "a", Below: []int32{1}}}},
		"below minus":  {one, []Entry{{Name: "a", Below: []int32{-1, 0}}}},
		"below twice":  {make([]Lower, 9), []Entry{{Name: "a", Below: []int32{3, 3}}}},
		"below order":  {make([]Lower, 9), []Entry{{Name: "a", Below: []int32{5, 3}}}},
		"below middle": {make([]Lower, 9), []Entry{{Name: "a", Below: []int32{5, 20, 6}}}},
		"xattr order":  {one, []Entry{{Name: "a", Xattrs: []Xattr{{Name: "b"}, {Name: "a"}}}}},
		"xattr twice":  {one, []Entry{{Name: "a", Xattrs: []Xattr{{Name: "b"}, {Name: "b"}}}}},
	} {
		if _, err := rec.Encode(nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

func TestDamagedRecord(t *testing.T) {
	good, err := smallRecord(7).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if _, err := DecodeDir(good[:n]); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut to %d of %d bytes: %v, want ErrDamaged", n, len(good), err)
		}
		for bit := range 8 {
			bad := slices.Clone(good)
			bad[n] ^= 1 << bit
			if _, err := DecodeDir(bad); !errors.Is(err, ErrDamaged) {
				t.Fatalf("bit %d of byte %d flipped: %v, want ErrDamaged", bit, n, err)
			}
		}
	}
}

// sealed gives bytes the checksum of a record, as a broken encoder would.
func sealed(b []byte) []byte {
	return binary.LittleEndian.AppendUint64(slices.Clone(b), xxhash.Sum64(b))
}

// visit uses all that a Dir offers.
func visit(d *Dir) error {
	var e Entry
	var errs []error
	for i := range d.Len() {
		errs = append(errs, d.At(i, &e))
		_, err := d.Find(e.Name, &e)
		errs = append(errs, err)
		_, _, _, _, err = d.NameAt(i)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// A wrong record under a right checksum may be decoded to anything, but neither panics nor gives another error.
func TestWrongRecordUnderRightChecksum(t *testing.T) {
	for seed := range uint64(4) {
		good, err := smallRecord(seed).Encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		body := good[:len(good)-sumSize]
		for n := range body {
			flipped := slices.Clone(body)
			flipped[n] ^= 0xff
			for _, b := range [][]byte{body[:n], flipped} {
				d, err := DecodeDir(sealed(b))
				if err == nil {
					err = visit(d)
				}
				if err != nil && !errors.Is(err, ErrDamaged) {
					t.Fatalf("byte %d: %v, want ErrDamaged", n, err)
				}
			}
		}
	}
}

func TestDigests(t *testing.T) {
	want := []Digest{{"a", 0, 0}, {"b", 1 << 40, math.MaxUint64}, {strings.Repeat("c", 255), 5, 7}}
	b := EncodeDigests(nil, want)
	got, err := DecodeDigests(string(b))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%v, %v; want %v", got, err, want)
	}
	for n := range b[:len(b)-sumSize] {
		bad := slices.Clone(b)
		bad[n] ^= 4
		if _, err := DecodeDigests(string(bad)); !errors.Is(err, ErrDamaged) {
			t.Fatalf("byte %d: %v, want ErrDamaged", n, err)
		}
		if _, err := DecodeDigests(string(sealed(b[:n]))); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut at %d: %v, want ErrDamaged", n, err)
		}
	}
}
