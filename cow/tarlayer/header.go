package tarlayer

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"time"
)

// BlockSize is the unit of a tar stream, in bytes: headers are of this size, content is padded to a multiple of it. The
// end mark is two blocks of zeros, of which one is enough for most.
const BlockSize = 512

// The fields of a header block (cf. POSIX pax, "ustar Interchange Format"), as offsets of their beginnings.
const (
	fieldName     = 0
	fieldMode     = 100
	fieldUID      = 108
	fieldGID      = 116
	fieldSize     = 124
	fieldMtime    = 136
	fieldSum      = 148
	fieldType     = 156
	fieldLinkname = 157
	fieldMagic    = 257
	fieldUname    = 265
	fieldDevmajor = 329
	fieldDevminor = 337
	fieldPrefix   = 345
	fieldEnd      = 500
)

const (
	magicUSTAR = "ustar\x0000"
	magicGNU   = "ustar  \x00"
)

// PlainHeader reads a header block of a file, directory or link that says all about its member: no extended header, no
// number or form that takes knowledge of dialects. It is what nearly all members of a layer have, and reading it is a
// good part of the work that a small file makes. Of anything else it says false, leaves hdr undefined, and archive/tar
// must decide; where it says true, hdr is what archive/tar would make of the block, but for the names of owners and the
// format, which nobody here wants.
func PlainHeader(block *[BlockSize]byte, hdr *tar.Header) bool {
	switch block[fieldType] {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink:
	default:
		return false
	}
	prefix := ""
	switch string(block[fieldMagic:fieldUname]) {
	case magicUSTAR:
		prefix = cString(block[fieldPrefix:fieldEnd])
	case magicGNU:
		if !allZero(block[fieldPrefix:fieldEnd]) { // times, or a map of holes
			return false
		}
	default:
		return false
	}
	// The last bytes mark dialects.
	if !allZero(block[fieldEnd:]) {
		return false
	}
	numbers := octals{block: block}
	sum := numbers.field(fieldSum, fieldType)
	*hdr = tar.Header{
		Typeflag: block[fieldType],
		Linkname: cString(block[fieldLinkname:fieldMagic]),
		Mode:     numbers.field(fieldMode, fieldUID),
		Uid:      int(numbers.field(fieldUID, fieldGID)),
		Gid:      int(numbers.field(fieldGID, fieldSize)),
		Size:     numbers.field(fieldSize, fieldMtime),
		ModTime:  time.Unix(numbers.field(fieldMtime, fieldSum), 0),
		Devmajor: numbers.field(fieldDevmajor, fieldDevminor),
		Devminor: numbers.field(fieldDevminor, fieldPrefix),
	}
	if numbers.strange || sum != headerSum(block) {
		return false
	}
	hdr.Name = cString(block[fieldName:fieldMode])
	if prefix != "" {
		hdr.Name = prefix + "/" + hdr.Name
	}
	return true
}

// ContentSize is how many bytes of content follow the header of a member in a stream that is not sparse. Types that have
// none have none, whatever size they name (cf. archive/tar isHeaderOnlyType).
func ContentSize(hdr *tar.Header) int64 {
	switch hdr.Typeflag {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		return 0
	}
	return max(hdr.Size, 0)
}

// octals reads the numbers of a block.
type octals struct {
	block *[BlockSize]byte
	// strange is set when a field was anything but octal digits, if any, and NULs or spaces behind them.
	strange bool
}

func (o *octals) field(from, to int) int64 {
	field := o.block[from:to]
	n, i := int64(0), 0
	for i < len(field) && field[i] >= '0' && field[i] <= '7' {
		n = n<<3 | int64(field[i]-'0')
		i++
	}
	for ; i < len(field); i++ {
		if field[i] != 0 && field[i] != ' ' {
			o.strange = true
		}
	}
	return n
}

// headerSum is the sum of the block's bytes, those of the sum itself taken for spaces.
func headerSum(block *[BlockSize]byte) int64 {
	// Four sums of 16 bits side by side: 64 words of two bytes each are less than that holds.
	const lanes = 0x00ff00ff00ff00ff
	var sums uint64
	for i := 0; i < BlockSize; i += 8 {
		word := binary.LittleEndian.Uint64(block[i:])
		sums += word&lanes + word>>8&lanes
	}
	total := int64(sums&0xffff + sums>>16&0xffff + sums>>32&0xffff + sums>>48)
	for _, b := range block[fieldSum:fieldType] {
		total += ' ' - int64(b)
	}
	return total
}

// cString is what comes before the first NUL.
func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
