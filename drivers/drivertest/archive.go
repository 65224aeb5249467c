package drivertest

import (
	"archive/tar"
	"encoding/binary"
	"io"
	"path"
	"testing"
	"time"

	"plyfs/cow/ovl"
)

// member is an entry of a layer's stream. A member with gone is a whiteout; one whose name ends in "/" is a directory.
type member struct {
	name, content string
	gone          bool
	size          int64 // of a file that has so many bytes of noise instead of content
	attrs         map[string]string
}

// archive makes the stream of a layer. The caller reads it to the end, or closes it.
func archive(t testing.TB, members ...member) io.ReadCloser {
	t.Helper()
	r, w := io.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.CloseWithError(writeArchive(w, members))
	}()
	t.Cleanup(func() {
		r.Close()
		<-ended
	})
	return r
}

func writeArchive(to io.Writer, members []member) error {
	w := tar.NewWriter(to)
	for i, m := range members {
		h := &tar.Header{
			Typeflag: tar.TypeReg, Name: m.name, Mode: 0o644, Size: int64(len(m.content)) + m.size,
			ModTime: time.Unix(1_500_000_000+int64(i), 0),
		}
		for name, value := range m.attrs {
			if h.PAXRecords == nil {
				h.PAXRecords = make(map[string]string)
			}
			h.PAXRecords["SCHILY.xattr."+name] = value
		}
		switch {
		case m.gone:
			h.Name = path.Join(path.Dir(m.name), ovl.AUFSWhiteout(path.Base(m.name)))
		case m.name[len(m.name)-1] == '/':
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.WriteString(w, m.content); err != nil {
			return err
		}
		if _, err := io.CopyN(w, &noise{state: uint64(i) + 1}, m.size); err != nil {
			return err
		}
	}
	return w.Close()
}

// noise is an endless stream of bytes that do not compress, the same for the same state (xorshift64).
type noise struct {
	state uint64
	left  []byte // of the last word
	word  [8]byte
}

func (n *noise) Read(p []byte) (int, error) {
	for i := 0; i < len(p); {
		if len(n.left) == 0 {
			n.state ^= n.state << 13
			n.state ^= n.state >> 7
			n.state ^= n.state << 17
			binary.LittleEndian.PutUint64(n.word[:], n.state)
			n.left = n.word[:]
		}
		k := copy(p[i:], n.left)
		n.left = n.left[k:]
		i += k
	}
	return len(p), nil
}
