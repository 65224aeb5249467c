package layerdb

import (
	"errors"
	"io"
	"os"
)

// input is the stream of a layer, as it came. It can be had again, for a layer whose tree will not give it.
type input struct {
	io.Reader
	// spool has what was read so far; nil if the stream can be read again, or will not be needed.
	spool *os.File
	again func() (io.Reader, error)
}

// newInput makes an input of a caller's stream: one that can't be sought in is written to a file on the way.
func (s *Store) newInput(r io.Reader) (*input, error) {
	if seeker, ok := r.(io.Seeker); ok {
		if start, err := seeker.Seek(0, io.SeekCurrent); err == nil {
			return &input{Reader: r, again: func() (io.Reader, error) {
				_, err := seeker.Seek(start, io.SeekStart)
				return r, err
			}}, nil
		}
	}
	f, err := os.CreateTemp(s.path(tempDir), "stream-*")
	if err != nil {
		return nil, err
	}
	in := &input{Reader: io.TeeReader(r, f), spool: f}
	in.again = func() (io.Reader, error) {
		_, err := f.Seek(0, io.SeekStart)
		return f, err
	}
	return in, nil
}

// ownInput is the input of a stream that this program makes, of which the tree gives all content.
func ownInput(r io.Reader) *input {
	return &input{Reader: r, again: func() (io.Reader, error) {
		return nil, errors.New("a stream of this program has members that hide one another")
	}}
}

func (in *input) close() {
	if in.spool != nil {
		in.spool.Close()
		os.Remove(in.spool.Name()) // what stays is removed when the store is opened
	}
}
