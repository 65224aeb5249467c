package drivers

import (
	"context"
	"io"
	"sync"
)

// stream is the reading end of what a goroutine writes.
type stream struct {
	*io.PipeReader
	cancel context.CancelFunc
	close  func() error
}

// Stream runs write in a goroutine and returns what it writes; an error of write is one of reading. Close ends the
// goroutine through its context, waits for it, and then calls done, once, whose error it returns. The caller closes the
// stream.
func Stream(ctx context.Context, write func(context.Context, io.Writer) error, done func() error) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.CloseWithError(write(ctx, w))
	}()
	return &stream{PipeReader: r, cancel: cancel, close: sync.OnceValue(func() error {
		<-ended
		return done()
	})}
}

// Close implements io.Closer. It may be called more than once, and by several goroutines.
func (s *stream) Close() error {
	s.cancel()
	s.PipeReader.Close()
	return s.close()
}
