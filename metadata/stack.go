package metadata

import (
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// LayerID is what tells a layer from every other, and from a copy of itself elsewhere.
type LayerID struct {
	// UUID and FSID identify the file system; zero where it has none.
	UUID [16]byte
	FSID uint64
	// Dev is the device number. It counts only where UUID and FSID are both zero, since another boot may give another.
	Dev uint64
	// Ino, Btime and Handle (an encoded file handle, nil where there is none) are those of the layer's root.
	Ino    uint64
	Btime  Time
	Handle []byte
	// UID and GID are the owner of the root as it is seen through the layer's mount, which may be an idmapped one.
	UID, GID uint32
	// Override is the attribute that holds owners and modes in this layer, "" for none.
	Override string
}

// Stack identifies a stack of lowers and the way in which it is read: an index is for all that are equal.
type Stack struct {
	// Layers are the lowers, topmost first.
	Layers []LayerID
	// IDMap are the uid and gid maps of the user namespace in which the layers' owners were read.
	IDMap string
	// Options are the mount options that change what the merged lowers show, in one canonical form.
	Options string
}

// stackVersion is that of the encoding, and so of all names.
const stackVersion = 2

// Encode returns the canonical encoding: equal stacks have equal ones.
func (s *Stack) Encode() []byte {
	b := []byte{stackVersion}
	b = binary.AppendUvarint(b, uint64(len(s.Layers)))
	for i := range s.Layers {
		l := &s.Layers[i]
		dev := l.Dev
		if l.UUID != [16]byte{} || l.FSID != 0 {
			dev = 0
		}
		b = append(b, l.UUID[:]...)
		for _, v := range [...]uint64{l.FSID, dev, l.Ino, uint64(l.Btime.Sec), uint64(l.Btime.Nsec), uint64(l.UID), uint64(l.GID)} {
			b = binary.AppendUvarint(b, v)
		}
		b = appendString(b, string(l.Handle))
		b = appendString(b, l.Override)
	}
	b = appendString(b, s.IDMap)
	return appendString(b, s.Options)
}

// Name is the name of the stack's index in a cache: 16 hexadecimal digits. Different stacks may share a name, however
// unlikely: the database holds the whole stack, and what opens an index compares it.
func (s *Stack) Name() string { return fmt.Sprintf("%016x", xxhash.Sum64(s.Encode())) }
