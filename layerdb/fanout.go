package layerdb

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

const (
	// chunkSize is how much of a stream is handed on at a time: large beside the cost of waking a goroutine.
	chunkSize = 1 << 20
	// chunksAhead is how far one reader may be ahead of another, in chunks.
	chunksAhead = 6
)

// errAbandoned is what a reader gives that was closed.
var errAbandoned = errors.New("nobody reads this any more")

// fanOut gives one stream to several readers, each in a goroutine of its own.
type fanOut struct {
	pool    sync.Pool
	readers []*fanReader
}

type chunk struct {
	data  []byte
	users atomic.Int32
}

// fanReader is one reader of a fanOut.
type fanReader struct {
	out    *fanOut
	chunks chan *chunk
	gone   chan struct{} // closed by Close
	once   sync.Once
	now    *chunk // what is being read, and what is left of it
	rest   []byte
	total  int64 // bytes read
	err    error // of the stream; written before chunks is closed
}

func newFanOut(readers int) *fanOut {
	f := &fanOut{}
	f.pool.New = func() any { return &chunk{data: make([]byte, chunkSize)} }
	for range readers {
		f.readers = append(f.readers, &fanReader{out: f, chunks: make(chan *chunk, chunksAhead), gone: make(chan struct{})})
	}
	return f
}

// run reads r to its end, gives each chunk to see, and then to the readers that are left. It ends early when all readers are
// gone, with errAbandoned. Its error is what the readers get at the end, io.EOF if it is nil.
func (f *fanOut) run(r io.Reader, see func([]byte)) (err error) {
	defer func() {
		for _, reader := range f.readers {
			reader.err = err
			close(reader.chunks)
		}
	}()
	for {
		c, _ := f.pool.Get().(*chunk)
		err := c.fill(r)
		if len(c.data) > 0 {
			see(c.data)
			if !f.give(c) {
				return errAbandoned
			}
		}
		if err == io.EOF { //nolint:errorlint // a wrapped one is not the end of the stream
			return nil
		} else if err != nil {
			return err
		}
	}
}

// fill reads a whole chunk, or what there is before an error. Unlike io.ReadFull it keeps the reader's own error: a stream
// that breaks off is not one that ends.
func (c *chunk) fill(r io.Reader) error {
	buf := c.data[:cap(c.data)]
	n := 0
	defer func() { c.data = buf[:n] }()
	for n < len(buf) {
		m, err := r.Read(buf[n:])
		n += m
		if err != nil {
			return err
		}
	}
	return nil
}

// give hands a chunk on, and says whether anybody took it.
func (f *fanOut) give(c *chunk) bool {
	c.users.Store(int32(len(f.readers)))
	taken := false
	for _, reader := range f.readers {
		select {
		case <-reader.gone:
			f.drop(c)
			continue
		default:
		}
		select {
		case reader.chunks <- c:
			taken = true
		case <-reader.gone:
			f.drop(c)
		}
	}
	return taken
}

func (f *fanOut) drop(c *chunk) {
	if c.users.Add(-1) == 0 {
		c.data = c.data[:cap(c.data)]
		f.pool.Put(c)
	}
}

// Read implements io.Reader.
func (r *fanReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.now != nil {
			r.out.drop(r.now)
			r.now = nil
		}
		select {
		case <-r.gone:
			return 0, errAbandoned
		default:
		}
		c, ok := <-r.chunks
		if !ok {
			if r.err != nil {
				return 0, r.err
			}
			return 0, io.EOF
		}
		r.now, r.rest = c, c.data
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	r.total += int64(n)
	return n, nil
}

// Close ends the reader, so that the others do not wait for it. It is called by the goroutine that reads.
func (r *fanReader) Close() { r.once.Do(func() { close(r.gone) }) }
