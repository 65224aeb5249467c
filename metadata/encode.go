package metadata

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

// The record of a directory. Numbers are varints (signed ones zigzag), strings have their length before them, times
// are a difference in seconds to the base that is named, and nanoseconds.
//
//	u8       recordVersion
//	bases    inode number; seconds of mtime; seconds of all other times
//	lowers   count; each: layer shifted by 3 over its flags, path unless it is that of the one before, stamp
//	owners   count; each: mode, uid, gid, blksize
//	xattrs   count of sets; each: length in bytes, count; each: name, length of value + 1 (0: not recorded), value
//	entries  count; width in bytes of an offset; per entry, its offset after the table, little endian
//	         each: name, u16 entry flags, first, owner, inode number less the base, of a directory Below as runs; unless
//	         flagged Ask: size; blocks, nlink, rdev, times and xattrs unless their flags say otherwise; subdirs
//	         of a directory; target of a symlink
//	u64      xxhash64 of all before it, little endian
//
// Entries are ordered by (NameOffset, Name): a name is found by a binary search that decodes nothing but names. What
// entries have in common (owners, sets of attributes) is said once. Differences are to bases of the record rather than to
// the entry before, so that each can be decoded alone.
const (
	recordVersion = 1
	sumSize       = 8
)

const (
	lowerSamePath = 1 << iota
	lowerXWhiteouts
	lowerSpecials
	lowerFlagBits = iota
)

const (
	flagAsk      = 1 << iota
	flagSpecial  // Entry.Special
	flagBlocks   // Blocks is what Size fills in pages of 4 KiB
	flagLinks    // Nlink is recorded; else 1
	flagRdev     // Rdev is recorded; else 0
	flagXattrs   // a set of attributes is recorded; else none
	flagAtime    // Atime is Mtime
	flagCtime    // Ctime is Mtime
	flagBtime    // Btime is Ctime
	flagNoBtime  // Btime is zero
	flagSubdirs  // Subdirs is recorded; else 0
	flagTarget   // Target is recorded; else ""
	flagBelow    // Below is recorded; else nil
	flagsUnknown = ^uint16(flagBelow<<1 - 1)
)

// owner is what most entries of a directory have in common.
type owner struct{ mode, uid, gid, blksize uint32 }

// order is the place of an entry among the sorted.
type order struct {
	off   uint64
	index int32
}

// encoder is the scratch space of Encode.
type encoder struct {
	buf     []byte
	body    []byte // the entries, until the tables before them are known
	set     []byte
	order   []order
	offsets []uint32
	owners  map[owner]uint64
	owned   []owner
	sets    map[string]uint64
	setList []string

	ino          uint64
	mtime, other int64 // bases in seconds
}

// encoders keeps scratch space between records. It holds nothing that outlives a call.
var encoders = sync.Pool{New: func() any {
	return &encoder{owners: make(map[owner]uint64), sets: make(map[string]uint64)}
}}

// Encode appends the encoded record to buf. r is left as it is. The error wraps ErrInvalid and says what of r cannot be
// recorded: a name twice or not a name, an index out of range, attributes or indices out of order. Values of attributes
// above MaxXattrValue are left out.
func (r *Record) Encode(buf []byte) ([]byte, error) {
	e, _ := encoders.Get().(*encoder)
	defer encoders.Put(e)
	e.reset(r)
	for i := range r.Lowers {
		if r.Lowers[i].Layer < 0 {
			return buf, fmt.Errorf("%w: layer %d", ErrInvalid, r.Lowers[i].Layer)
		}
	}
	if err := e.sort(r.Entries); err != nil {
		return buf, err
	}
	for _, o := range e.order {
		if len(e.body) > math.MaxUint32/2 {
			return buf, fmt.Errorf("%w: more than 2 GiB of entries", ErrInvalid)
		}
		e.offsets = append(e.offsets, uint32(len(e.body)))
		if err := e.entry(&r.Entries[o.index], len(r.Lowers)); err != nil {
			return buf, err
		}
	}
	e.buf = buf
	start := len(buf)
	e.header(r)
	out := e.buf
	e.buf = nil
	return binary.LittleEndian.AppendUint64(out, xxhash.Sum64(out[start:])), nil
}

func (e *encoder) reset(r *Record) {
	e.body, e.order, e.offsets = e.body[:0], e.order[:0], e.offsets[:0]
	e.owned, e.setList = e.owned[:0], e.setList[:0]
	clear(e.owners)
	clear(e.sets)
	e.ino, e.mtime, e.other = 0, 0, 0
	if len(r.Lowers) > 0 {
		s := &r.Lowers[0].Stamp
		e.ino, e.mtime, e.other = s.Ino, s.Mtime.Sec, s.Ctime.Sec
	}
	if i := slices.IndexFunc(r.Entries, func(t Entry) bool { return !t.Ask }); i >= 0 {
		// Files are made with their directory, but have the times of where they came from.
		e.mtime, e.other = r.Entries[i].Mtime.Sec, r.Entries[i].Ctime.Sec
	}
}

func (e *encoder) sort(entries []Entry) error {
	if len(entries) > math.MaxInt32 {
		return fmt.Errorf("%w: %d entries", ErrInvalid, len(entries))
	}
	for i := range entries {
		e.order = append(e.order, order{off: NameOffset(entries[i].Name), index: int32(i)})
	}
	slices.SortFunc(e.order, func(a, b order) int {
		if c := cmp.Compare(a.off, b.off); c != 0 {
			return c
		}
		return strings.Compare(entries[a.index].Name, entries[b.index].Name)
	})
	for i := 1; i < len(e.order); i++ {
		if a, b := e.order[i-1], e.order[i]; a.off == b.off && entries[a.index].Name == entries[b.index].Name {
			return fmt.Errorf("%w: the name %q twice", ErrInvalid, entries[a.index].Name)
		}
	}
	return nil
}

// header appends all that stands before the entries, and them.
func (e *encoder) header(r *Record) {
	e.buf = append(e.buf, recordVersion)
	e.buf = binary.AppendUvarint(e.buf, e.ino)
	e.buf = binary.AppendVarint(e.buf, e.mtime)
	e.buf = binary.AppendVarint(e.buf, e.other)
	e.lowers(r.Lowers)
	e.buf = binary.AppendUvarint(e.buf, uint64(len(e.owned)))
	for _, o := range e.owned {
		for _, v := range [...]uint32{o.mode, o.uid, o.gid, o.blksize} {
			e.buf = binary.AppendUvarint(e.buf, uint64(v))
		}
	}
	e.buf = binary.AppendUvarint(e.buf, uint64(len(e.setList)))
	for _, s := range e.setList {
		e.buf = appendString(e.buf, s)
	}
	e.buf = binary.AppendUvarint(e.buf, uint64(len(e.offsets)))
	width := offsetWidth(len(e.body))
	e.buf = append(e.buf, byte(width))
	for _, off := range e.offsets {
		for i := range width {
			e.buf = append(e.buf, byte(off>>(8*i)))
		}
	}
	e.buf = append(e.buf, e.body...)
}

// offsetWidth is the number of bytes that hold every offset below size.
func offsetWidth(size int) int {
	switch {
	case size <= 1<<16:
		return 2
	case size <= 1<<24:
		return 3
	default:
		return 4
	}
}

func (e *encoder) lowers(lowers []Lower) {
	e.buf = binary.AppendUvarint(e.buf, uint64(len(lowers)))
	path := ""
	for i := range lowers {
		l := &lowers[i]
		head := uint64(l.Layer) << lowerFlagBits
		if l.Path == path {
			head |= lowerSamePath
		}
		if l.XWhiteouts {
			head |= lowerXWhiteouts
		}
		if l.Specials {
			head |= lowerSpecials
		}
		e.buf = binary.AppendUvarint(e.buf, head)
		if l.Path != path {
			e.buf = appendString(e.buf, l.Path)
			path = l.Path
		}
		e.buf = binary.AppendUvarint(e.buf, l.Stamp.Ino)
		e.buf = binary.AppendUvarint(e.buf, l.Stamp.Size)
		e.buf = appendTime(e.buf, l.Stamp.Mtime, e.mtime)
		e.buf = appendTime(e.buf, l.Stamp.Ctime, e.other)
	}
}

// flags says which parts of the entry are recorded.
func (t *Entry) flags() uint16 {
	var f uint16
	set := func(on bool, flag uint16) {
		if on {
			f |= flag
		}
	}
	set(t.Below != nil, flagBelow)
	if t.Ask {
		return f | flagAsk
	}
	set(t.Special, flagSpecial)
	set(t.Blocks == pagesOf(t.Size), flagBlocks)
	set(t.Nlink != 1, flagLinks)
	set(t.Rdev != 0, flagRdev)
	set(len(t.Xattrs) > 0, flagXattrs)
	set(t.Atime == t.Mtime, flagAtime)
	set(t.Ctime == t.Mtime, flagCtime)
	set(t.Btime == Time{}, flagNoBtime)
	set(t.Btime == t.Ctime && t.Btime != Time{}, flagBtime)
	set(t.Subdirs != 0, flagSubdirs)
	set(t.Target != "", flagTarget)
	return f
}

// pagesOf is how many blocks of 512 bytes a file of a size occupies on most file systems.
func pagesOf(size uint64) uint64 { return (size/4096 + min(size%4096, 1)) * 8 }

func validName(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00")
}

// entry appends one entry of a directory with so many lowers to the body.
func (e *encoder) entry(t *Entry, lowers int) error {
	if !validName(t.Name) {
		return fmt.Errorf("%w: %q is not a name", ErrInvalid, t.Name)
	}
	if t.First < 0 || int(t.First) >= lowers {
		return fmt.Errorf("%w: %q is in lower %d of %d", ErrInvalid, t.Name, t.First, lowers)
	}
	f := t.flags()
	own := owner{t.Mode, t.UID, t.GID, t.Blksize}
	if t.Ask {
		own = owner{mode: t.Mode & unix.S_IFMT}
	}
	id, ok := e.owners[own]
	if !ok {
		id = uint64(len(e.owned))
		e.owners[own] = id
		e.owned = append(e.owned, own)
	}
	b := appendString(e.body, t.Name)
	b = binary.LittleEndian.AppendUint16(b, f)
	b = binary.AppendUvarint(b, uint64(t.First))
	b = binary.AppendUvarint(b, id)
	b = binary.AppendVarint(b, int64(t.Ino-e.ino))
	if f&flagBelow != 0 {
		var err error
		if b, err = appendRuns(b, t.Below, lowers); err != nil {
			return fmt.Errorf("%q: %w", t.Name, err)
		}
	}
	e.body = b
	if t.Ask {
		return nil
	}
	return e.attributes(t, f)
}

// attributes appends what is recorded of entries that are not flagged Ask.
func (e *encoder) attributes(t *Entry, f uint16) error {
	b := binary.AppendUvarint(e.body, t.Size)
	if f&flagBlocks == 0 {
		b = binary.AppendUvarint(b, t.Blocks)
	}
	if f&flagLinks != 0 {
		b = binary.AppendUvarint(b, uint64(t.Nlink))
	}
	if f&flagRdev != 0 {
		b = binary.AppendUvarint(b, t.Rdev)
	}
	b = appendTime(b, t.Mtime, e.mtime)
	if f&flagAtime == 0 {
		b = appendTime(b, t.Atime, e.other)
	}
	if f&flagCtime == 0 {
		b = appendTime(b, t.Ctime, e.other)
	}
	if f&(flagBtime|flagNoBtime) == 0 {
		b = appendTime(b, t.Btime, e.other)
	}
	if f&flagSubdirs != 0 {
		b = binary.AppendVarint(b, int64(t.Subdirs))
	}
	if f&flagTarget != 0 {
		b = appendString(b, t.Target)
	}
	if f&flagXattrs != 0 {
		id, err := e.xattrs(t)
		if err != nil {
			return err
		}
		b = binary.AppendUvarint(b, id)
	}
	e.body = b
	return nil
}

// xattrs returns the number of the entry's set of attributes.
func (e *encoder) xattrs(t *Entry) (uint64, error) {
	e.set = binary.AppendUvarint(e.set[:0], uint64(len(t.Xattrs)))
	for i, x := range t.Xattrs {
		if i > 0 && t.Xattrs[i-1].Name >= x.Name {
			return 0, fmt.Errorf("%w: attributes of %q are not sorted by name", ErrInvalid, t.Name)
		}
		e.set = appendString(e.set, x.Name)
		if x.Value == nil || len(x.Value) > MaxXattrValue {
			e.set = append(e.set, 0)
			continue
		}
		e.set = binary.AppendUvarint(e.set, uint64(len(x.Value))+1)
		e.set = append(e.set, x.Value...)
	}
	id, ok := e.sets[string(e.set)]
	if !ok {
		id = uint64(len(e.setList))
		s := string(e.set)
		e.sets[s] = id
		e.setList = append(e.setList, s)
	}
	return id, nil
}

// appendRuns appends ascending indices below limit as their count and runs of neighbours: the gap before each and its
// length. Most directories merge from all lowers that their parent merges from, which is one run.
func appendRuns(b []byte, indices []int32, limit int) ([]byte, error) {
	b = binary.AppendUvarint(b, uint64(len(indices)))
	next := int32(0)
	for i := 0; i < len(indices); {
		first := indices[i]
		if first < next || int(indices[len(indices)-1]) >= limit {
			return b, fmt.Errorf("%w: lowers %v of %d", ErrInvalid, indices, limit)
		}
		n := 1
		for i+n < len(indices) && indices[i+n] == first+int32(n) {
			n++
		}
		b = binary.AppendUvarint(b, uint64(first-next))
		b = binary.AppendUvarint(b, uint64(n))
		next = first + int32(n)
		i += n
	}
	return b, nil
}

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendTime(b []byte, t Time, base int64) []byte {
	b = binary.AppendVarint(b, t.Sec-base)
	return binary.AppendUvarint(b, uint64(t.Nsec))
}
