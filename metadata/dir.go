package metadata

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// Dir is a recorded directory. It is immutable and safe for concurrent use, and holds little more than its encoded
// bytes: entries are decoded when they are asked for.
//
// The strings that it hands out are parts of those bytes and keep all of them in memory; who keeps one for long clones it.
type Dir struct {
	// Lowers are the lower directories that make up this one, topmost first.
	Lowers []Lower

	owners []owner
	sets   [][]Xattr
	table  string // the offsets of the entries
	body   string // the entries
	n      int
	width  int
	size   int

	ino          uint64
	mtime, other int64 // bases in seconds
}

// DecodeDir returns the directory that b encodes. The error wraps ErrDamaged. b may be reused.
func DecodeDir(b []byte) (*Dir, error) { return DecodeDirString(string(b)) }

// DecodeDirString is DecodeDir for a string, which the directory keeps.
func DecodeDirString(s string) (*Dir, error) {
	body, err := checked(s)
	if err != nil {
		return nil, fmt.Errorf("record of a directory: %w", err)
	}
	c := cursor{s: body}
	if v := c.byte(); v != recordVersion {
		return nil, fmt.Errorf("record of a directory: %w: version %d, not %d", ErrDamaged, v, recordVersion)
	}
	d := &Dir{size: len(s)}
	d.ino, d.mtime, d.other = c.uvarint(), c.varint(), c.varint()
	d.readLowers(&c)
	d.owners = make([]owner, c.count(4))
	for i := range d.owners {
		d.owners[i] = owner{c.uint32(), c.uint32(), c.uint32(), c.uint32()}
	}
	if n := c.count(2); n > 0 {
		d.sets = make([][]Xattr, n)
		for i := range d.sets {
			d.sets[i] = readSet(&c)
		}
	}
	d.n = c.count(2)
	d.width = int(c.byte())
	if d.width < 2 || d.width > 4 || d.n > math.MaxInt32 {
		c.fail()
	}
	d.table = c.take(d.n * d.width)
	d.body = c.s[c.at:]
	if c.bad {
		return nil, fmt.Errorf("record of a directory: %w: its tables do not fit", ErrDamaged)
	}
	return d, nil
}

// checked returns s without the checksum at its end, which it has compared.
func checked(s string) (string, error) {
	if len(s) < sumSize {
		return "", fmt.Errorf("%w: %d bytes", ErrDamaged, len(s))
	}
	body, tail := s[:len(s)-sumSize], cursor{s: s[len(s)-sumSize:]}
	if tail.uint64() != xxhash.Sum64String(body) {
		return "", fmt.Errorf("%w: the checksum does not match", ErrDamaged)
	}
	return body, nil
}

func (d *Dir) readLowers(c *cursor) {
	d.Lowers = make([]Lower, c.count(7))
	path := ""
	for i := range d.Lowers {
		l := &d.Lowers[i]
		head := c.uvarint()
		if head>>lowerFlagBits > math.MaxInt32 {
			c.fail()
		}
		l.Layer = int32(head >> lowerFlagBits)
		l.XWhiteouts = head&lowerXWhiteouts != 0
		l.Specials = head&lowerSpecials != 0
		if head&lowerSamePath == 0 {
			path = c.str()
		}
		l.Path = path
		l.Stamp = Stamp{Ino: c.uvarint(), Size: c.uvarint(), Mtime: c.time(d.mtime), Ctime: c.time(d.other)}
	}
}

func readSet(c *cursor) []Xattr {
	in := cursor{s: c.str()}
	set := make([]Xattr, in.count(2))
	for i := range set {
		set[i].Name = in.str()
		if n := in.uvarint(); n > MaxXattrValue+1 {
			in.fail()
		} else if n > 0 {
			set[i].Value = []byte(in.take(int(n) - 1))
		}
	}
	if !in.ok() {
		c.fail()
	}
	return set
}

// Len is the number of entries.
func (d *Dir) Len() int { return d.n }

// Size is the number of bytes that the directory takes on disk, and about what it takes in memory.
func (d *Dir) Size() int { return d.size }

// Find fills e with the entry of that name; false means that there is none, and e is undefined. Nothing is allocated but
// what Below lacks in room. The error wraps ErrDamaged.
func (d *Dir) Find(name string, e *Entry) (bool, error) {
	p := probe{want: NameOffset(name), hi: d.n, above: maxOffset}
	for p.lo < p.hi {
		mid := p.next()
		var c cursor
		got := d.nameAt(mid, &c)
		if c.bad {
			return false, d.damaged(mid)
		}
		off := NameOffset(got)
		order := cmp.Compare(off, p.want)
		if order == 0 {
			order = strings.Compare(got, name)
		}
		switch {
		case order < 0:
			p.lo, p.below = mid+1, off
		case order > 0:
			p.hi, p.above = mid, off
		default:
			e.Name = name
			return true, d.fill(mid, &c, e)
		}
	}
	return false, nil
}

// maxOffset is above all offsets.
const maxOffset = 1 << 63

// guesses is how many probes are guessed before the rest of the range is halved.
const guesses = 6

// probe searches entries lo to hi, whose offsets are between below and above. Offsets are hashes, so they are spread
// evenly, and a guess from them is nearly right: two or three probes find a name among hundreds.
type probe struct {
	want, below, above uint64
	lo, hi, n          int
}

// next returns the entry to compare with. Precondition: lo is below hi.
func (p *probe) next() int {
	if p.n++; p.n > guesses || p.want <= p.below || p.want >= p.above {
		return int(uint(p.lo+p.hi) >> 1)
	}
	hi, lo := bits.Mul64(p.want-p.below, uint64(p.hi-p.lo))
	q, _ := bits.Div64(hi, lo, p.above-p.below)
	return p.lo + int(q)
}

// At fills e with the i-th entry in the order of (NameOffset, Name); i must be below Len. The error wraps ErrDamaged.
func (d *Dir) At(i int, e *Entry) error {
	var c cursor
	e.Name = d.nameAt(i, &c)
	return d.fill(i, &c, e)
}

// NameAt returns of the i-th entry what a listing needs: its name, its type as a DT_ constant, its inode number and the
// index into Lowers of the lower that it is in. i must be below Len. The error wraps ErrDamaged.
func (d *Dir) NameAt(i int) (name string, typ uint8, ino uint64, first int32, err error) {
	var c cursor
	name = d.nameAt(i, &c)
	c.uint16()
	lower := c.below(len(d.Lowers))
	own := c.below(len(d.owners))
	ino = d.ino + uint64(c.varint())
	if c.bad {
		return "", 0, 0, 0, d.damaged(i)
	}
	return name, uint8(d.owners[own].mode >> 12 & 15), ino, int32(lower), nil
}

// nameAt returns the name of the i-th entry and leaves c behind it.
func (d *Dir) nameAt(i int, c *cursor) string {
	at := 0
	for k := d.width - 1; k >= 0; k-- {
		at = at<<8 | int(d.table[i*d.width+k])
	}
	if at > len(d.body) {
		c.bad = true
		return ""
	}
	c.s, c.at = d.body, at
	return c.str()
}

func (d *Dir) damaged(i int) error {
	return fmt.Errorf("record of a directory: %w: entry %d of %d", ErrDamaged, i, d.n)
}

// fill decodes the i-th entry, whose name c is behind.
func (d *Dir) fill(i int, c *cursor, e *Entry) error {
	name, below := e.Name, e.Below[:0]
	*e = Entry{Name: name}
	f := c.uint16()
	if f&flagsUnknown != 0 {
		c.fail()
	}
	e.First = int32(c.below(len(d.Lowers)))
	own := c.below(len(d.owners))
	e.Ino = d.ino + uint64(c.varint())
	if c.bad {
		return d.damaged(i)
	}
	o := d.owners[own]
	e.Mode, e.UID, e.GID, e.Blksize = o.mode, o.uid, o.gid, o.blksize
	if f&flagBelow != 0 {
		e.Below = readRuns(c, below, len(d.Lowers))
	}
	if e.Ask = f&flagAsk != 0; !e.Ask {
		d.attributes(c, f, e)
	}
	if c.bad {
		return d.damaged(i)
	}
	return nil
}

func (d *Dir) attributes(c *cursor, f uint16, e *Entry) {
	e.Special = f&flagSpecial != 0
	e.Size = c.uvarint()
	e.Blocks = pagesOf(e.Size)
	if f&flagBlocks == 0 {
		e.Blocks = c.uvarint()
	}
	e.Nlink = 1
	if f&flagLinks != 0 {
		e.Nlink = c.uint32()
	}
	if f&flagRdev != 0 {
		e.Rdev = c.uvarint()
	}
	e.Mtime = c.time(d.mtime)
	e.Atime, e.Ctime = e.Mtime, e.Mtime
	if f&flagAtime == 0 {
		e.Atime = c.time(d.other)
	}
	if f&flagCtime == 0 {
		e.Ctime = c.time(d.other)
	}
	switch {
	case f&flagBtime != 0:
		e.Btime = e.Ctime
	case f&flagNoBtime == 0:
		e.Btime = c.time(d.other)
	}
	if f&flagSubdirs != 0 {
		v := c.varint()
		if v < math.MinInt32 || v > math.MaxInt32 {
			c.fail()
		}
		e.Subdirs = int32(v)
	}
	if f&flagTarget != 0 {
		e.Target = c.str()
	}
	e.NoXattrs = f&flagXattrs == 0
	if !e.NoXattrs {
		if set := c.below(len(d.sets)); !c.bad {
			e.Xattrs = d.sets[set]
		}
	}
}

// readRuns reads what appendRuns wrote, into the room of list.
func readRuns(c *cursor, list []int32, limit int) []int32 {
	left, next := c.below(limit+1), 0
	if list == nil {
		list = make([]int32, 0, left)
	}
	for left > 0 && !c.bad {
		first := next + c.below(limit-next)
		n := c.below(min(left, limit-first) + 1)
		if n == 0 {
			c.fail()
		}
		for i := range n {
			list = append(list, int32(first+i))
		}
		left -= n
		next = first + n
	}
	return list
}
