package metadata

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cespare/xxhash/v2"
)

// Info describes an index.
type Info struct {
	// Name is the name in the cache, Path the directory.
	Name string
	Path string
	// Dirs and Entries are the numbers of recorded directories and of names in them.
	Dirs, Entries uint64
	// Bytes is what the index takes on disk.
	Bytes int64
	// Built is when it was committed, Used when it was opened last, to the hour.
	Built, Used time.Time
	// Stale is the reason why the index must not be used any more, "" if there is none.
	Stale string
	// Broken says why the index cannot be opened, "" if it can. Then only Name, Path, Bytes and Used are known.
	Broken string
	// Schema is the version of the database.
	Schema int
	// Layers are the paths of the layers, topmost first, when the index was built.
	Layers []string
	// Digests says that the contents of regular files have digests.
	Digests bool
}

// Digest is what the content of a regular file was when it was indexed. Sum is an xxhash64: it finds damage, not malice.
type Digest struct {
	Name string
	Size uint64
	Sum  uint64
}

const (
	infoVersion    = 1
	digestsVersion = 1
)

// EncodeInfo returns the part of i that is stored in the database.
func EncodeInfo(i *Info) []byte {
	b := []byte{infoVersion}
	b = binary.AppendVarint(b, i.Built.UnixNano())
	b = binary.AppendUvarint(b, i.Dirs)
	b = binary.AppendUvarint(b, i.Entries)
	digests := byte(0)
	if i.Digests {
		digests = 1
	}
	b = append(b, digests)
	b = binary.AppendUvarint(b, uint64(len(i.Layers)))
	for _, l := range i.Layers {
		b = appendString(b, l)
	}
	return binary.LittleEndian.AppendUint64(b, xxhash.Sum64(b))
}

// DecodeInfo fills in the part of i that EncodeInfo stored. The error wraps ErrDamaged.
func DecodeInfo(s string, i *Info) error {
	body, err := checked(s)
	if err != nil {
		return fmt.Errorf("description of the index: %w", err)
	}
	c := cursor{s: body}
	version := c.byte()
	i.Built = time.Unix(0, c.varint())
	i.Dirs, i.Entries = c.uvarint(), c.uvarint()
	i.Digests = c.byte() != 0
	i.Layers = make([]string, c.count(1))
	for k := range i.Layers {
		i.Layers[k] = c.str()
	}
	if version != infoVersion || !c.ok() {
		return fmt.Errorf("description of the index: %w", ErrDamaged)
	}
	return nil
}

// EncodeDigests appends to buf the digests of a directory: a version, a count, for each name, size and sum, and a checksum of
// it all.
func EncodeDigests(buf []byte, ds []Digest) []byte {
	start := len(buf)
	buf = append(buf, digestsVersion)
	buf = binary.AppendUvarint(buf, uint64(len(ds)))
	for _, d := range ds {
		buf = appendString(buf, d.Name)
		buf = binary.AppendUvarint(buf, d.Size)
		buf = binary.LittleEndian.AppendUint64(buf, d.Sum)
	}
	return binary.LittleEndian.AppendUint64(buf, xxhash.Sum64(buf[start:]))
}

// DecodeDigests returns what EncodeDigests stored. The error wraps ErrDamaged.
func DecodeDigests(s string) ([]Digest, error) {
	body, err := checked(s)
	if err != nil {
		return nil, fmt.Errorf("digests: %w", err)
	}
	c := cursor{s: body}
	version := c.byte()
	ds := make([]Digest, c.count(10))
	for i := range ds {
		ds[i] = Digest{Name: c.str(), Size: c.uvarint(), Sum: c.uint64()}
	}
	if version != digestsVersion || !c.ok() {
		return nil, fmt.Errorf("digests: %w: they do not fit", ErrDamaged)
	}
	return ds, nil
}
