package layerdb

import (
	"errors"
	"io"
	"os"
)

// input is the stream of a layer, as it came. It can be read a second time, for a layer whose stream has to be kept whole because its
// tree does not hold all of it.
type input struct {
	io.Reader
	// spool is the file to which the stream is copied while it is read; nil if the stream can be read again by itself, or need not be.
	spool *os.File
	// again returns the stream from its beginning. It is called once the first reading has ended.
	again func() (io.Reader, error)
}

// newInput makes an input of a caller's stream. Unless r is an io.Seeker, and can be sought in, the stream is copied to a file while
// it is read. The caller closes the input.
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

// ownInput is the input of a stream that this program makes: its members do not hide one another, so it need not be read again.
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
