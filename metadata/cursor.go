package metadata

import "math"

// cursor reads an encoding from its beginning. After the first thing that is not there or out of range it is bad, and
// answers zeros: callers check once, at the end. It reads a string, so that the strings in it cost nothing.
type cursor struct {
	s   string
	at  int // what is before it was read
	bad bool
}

func (c *cursor) uvarint() uint64 {
	var v uint64
	rest := c.s[c.at:]
	for i := 0; i < len(rest); i++ {
		x := rest[i]
		if i == 9 && x > 1 {
			break
		}
		v |= uint64(x&0x7f) << (7 * i)
		if x < 0x80 {
			c.at += i + 1
			return v
		}
	}
	c.fail()
	return 0
}

func (c *cursor) varint() int64 {
	u := c.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

// uint32 reads a varint that fits.
func (c *cursor) uint32() uint32 {
	v := c.uvarint()
	if v > math.MaxUint32 {
		c.fail()
		return 0
	}
	return uint32(v)
}

// count reads the number of things that follow, each of at least size bytes: a number that the rest cannot hold is bad
// before anyone makes room for it.
func (c *cursor) count(size int) int {
	v := c.uvarint()
	if v > uint64((len(c.s)-c.at)/size) {
		c.fail()
		return 0
	}
	return int(v)
}

// below reads an index into something of n elements.
func (c *cursor) below(n int) int {
	v := c.uvarint()
	if v >= uint64(n) {
		c.fail()
		return 0
	}
	return int(v)
}

func (c *cursor) take(n int) string {
	if n < 0 || n > len(c.s)-c.at {
		c.fail()
		return ""
	}
	s := c.s[c.at : c.at+n]
	c.at += n
	return s
}

func (c *cursor) str() string { return c.take(c.count(1)) }

func (c *cursor) byte() byte {
	if s := c.take(1); s != "" {
		return s[0]
	}
	return 0
}

func (c *cursor) uint16() uint16 {
	if s := c.take(2); s != "" {
		return uint16(s[0]) | uint16(s[1])<<8
	}
	return 0
}

func (c *cursor) uint64() uint64 {
	s := c.take(8)
	var v uint64
	for i := range len(s) {
		v |= uint64(s[i]) << (8 * i)
	}
	return v
}

func (c *cursor) time(base int64) Time {
	return Time{Sec: base + c.varint(), Nsec: c.uint32()}
}

func (c *cursor) fail() { c.at, c.bad = len(c.s), true }

// ok says that everything was read and nothing is left.
func (c *cursor) ok() bool { return !c.bad && c.at == len(c.s) }
