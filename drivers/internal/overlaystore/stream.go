package overlaystore

import (
	"context"
	"io"
	"sync"
)

// stream is the reading end of what a goroutine writes.
type stream struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   func() error
}

// newStream returns what write writes, in a goroutine that ends with Close. done is called then, once.
func newStream(ctx context.Context, write func(context.Context, io.Writer) error, done func() error) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.CloseWithError(write(ctx, w))
	}()
	return &stream{PipeReader: r, cancel: cancel, done: sync.OnceValue(func() error {
		<-ended
		return done()
	})}
}

// Close implements io.Closer; it may be called more than once.
func (s *stream) Close() error {
	s.cancel()
	s.PipeReader.Close()
	return s.done()
}

// meter tells how much was read.
type meter struct {
	r        io.Reader
	n        int64
	progress func(int64)
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	if m.progress != nil && n > 0 {
		m.progress(m.n)
	}
	return n, err
}
