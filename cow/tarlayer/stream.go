package tarlayer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

const (
	aheadBlock  = 256 << 10
	aheadBlocks = 4
)

// ahead reads a stream in a goroutine of its own, so that decompression and hashing behind r go on while members are
// written.
type ahead struct {
	full chan block
	free chan []byte
	quit chan struct{}
	done sync.WaitGroup
	ctx  context.Context // of one Apply: Read has no parameter for it
	cur  block
	rest []byte
}

type block struct {
	buf []byte
	n   int
	err error
}

func newAhead(ctx context.Context, r io.Reader) *ahead {
	a := &ahead{
		full: make(chan block, aheadBlocks),
		free: make(chan []byte, aheadBlocks),
		quit: make(chan struct{}),
		ctx:  ctx,
	}
	for range aheadBlocks {
		a.free <- nil // made when it is needed: most layers are small
	}
	a.done.Go(func() { a.fill(r) })
	return a
}

func (a *ahead) fill(r io.Reader) {
	defer close(a.full)
	for {
		var b block
		select {
		case b.buf = <-a.free:
		case <-a.quit:
			return
		}
		if b.buf == nil {
			b.buf = make([]byte, aheadBlock)
		}
		for empty := 0; b.n < len(b.buf) && b.err == nil; {
			var n int
			n, b.err = r.Read(b.buf[b.n:])
			b.n += n
			if empty++; n > 0 {
				empty = 0
			} else if empty == 100 && b.err == nil { // as bufio has it
				b.err = io.ErrNoProgress
			}
			select {
			case <-a.quit:
				return
			default:
			}
		}
		a.full <- b // never blocks: there are as many places as buffers
		if b.err != nil {
			return
		}
	}
}

// Read implements io.Reader. It fails with the context's error once that is done.
func (a *ahead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.buf != nil {
			a.free <- a.cur.buf
			a.cur.buf = nil
		}
		select {
		case a.cur = <-a.full:
			a.rest = a.cur.buf[:a.cur.n]
		case <-a.ctx.Done():
			return 0, context.Cause(a.ctx)
		}
		if err := context.Cause(a.ctx); err != nil {
			return 0, err
		}
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// stop ends the reading. It waits for a Read of the stream that is under way, so that nobody uses the stream
// afterwards.
func (a *ahead) stop() {
	close(a.quit)
	a.done.Wait()
}

// guard bounds what archive/tar reads in search of the next member, and notes how the stream ends.
type guard struct {
	r io.Reader
	// budget is what may still be read; negative in a member's data.
	budget, limit int64
	// ended is set when the stream ended in front of a header, zeros is how many bytes of zeros came last.
	ended bool
	zeros int64
	// err is what reading failed with, but for the end.
	err error
}

func (g *guard) beginHeader() { g.budget, g.zeros = g.limit, 0 }
func (g *guard) beginData()   { g.budget = -1 }

// Read implements io.Reader.
func (g *guard) Read(p []byte) (int, error) {
	if g.budget < 0 {
		return g.r.Read(p)
	}
	n, err := g.r.Read(p)
	if int64(n) > g.budget {
		g.err = fmt.Errorf("headers: %w", limitError("Header", g.limit))
		return 0, g.err
	}
	g.budget -= int64(n)
	if allZero(p[:n]) {
		g.zeros += int64(n)
	} else {
		g.zeros = 0
	}
	if errors.Is(err, io.EOF) {
		g.ended = true
	} else if err != nil {
		g.err = err
	}
	return n, err
}
