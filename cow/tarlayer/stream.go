package tarlayer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/cespare/xxhash/v2"
)

const (
	// batchBytes is how much of a stream is taken apart and handed on at a time: much beside the price of waking a
	// goroutine, little beside the caches of a processor. A multiple of holePage.
	batchBytes = 256 << 10
	// batches is how many of them there are: one being read, one whose names are made, one whose files are filled, the
	// others for when one of the three is slow for a moment.
	batches = 6
	// wholeBytes is the size up to which content is never divided: it is moved to the next batch instead.
	wholeBytes = 64 << 10
)

// item is one thing of a stream, in the stream's order. After one with an error or the kind itemEnd there is none.
type item struct {
	kind itemKind
	// more says that an itemContent follows, with more of the member's content.
	more bool
	// cut says of an itemEnd that the stream has no end mark.
	cut bool
	hdr tar.Header
	// data is content, in the batch's memory. Its length is a multiple of holePage if there is more.
	data []byte
	// sum is the xxhash64 of data, if sums are wanted and there is not more.
	sum uint64
	// size is the number of bytes of an itemPadding.
	size int64
	err  error
}

type itemKind uint8

const (
	itemMember  itemKind = iota // hdr, and data if it has content
	itemContent                 // data
	itemPadding                 // bytes behind the end mark
	itemEnd
)

// batch is a part of a stream, and what is in it.
type batch struct {
	buf   []byte
	items []item
	// pending are files whose content is in buf.
	pending []pending
	// unfolded is content that is not in the stream as it is: that of a sparse file.
	unfolded []byte
}

func (b *batch) allocate() {
	if b.buf == nil {
		b.buf = make([]byte, batchBytes)
	}
}

// scanner reads a stream and takes it apart in a goroutine of its own, so that this, and decompression and hashing
// behind the reader, go on while members are made. Content is not copied again: items refer to what was read.
type scanner struct {
	r      io.Reader
	header int64 // Limits.Header
	sums   bool
	full   chan *batch
	free   chan *batch
	quit   chan struct{}
	done   sync.WaitGroup

	cur *batch
	// pos and end bound what was read into cur and is not taken apart.
	pos, end int
	// off is the place of pos in the stream.
	off int64
	// err is why no more can be read.
	err error
}

// errQuit ends a scanner of which nobody wants more.
var errQuit = errors.New("nobody reads this stream any more")

func newScanner(r io.Reader, limits Limits, sums bool) *scanner {
	s := &scanner{
		r: r, header: limits.Header, sums: sums,
		full: make(chan *batch, batches),
		free: make(chan *batch, batches),
		quit: make(chan struct{}),
		cur:  &batch{}, // gets memory when it is needed, as the others do: most layers are small
	}
	for range batches - 1 {
		s.free <- &batch{}
	}
	s.done.Go(s.scan)
	return s
}

// stop ends the reading. It waits for a Read of the stream that is under way, so that nobody uses the stream
// afterwards.
func (s *scanner) stop() {
	close(s.quit)
	s.done.Wait()
}

func (s *scanner) scan() {
	defer close(s.full)
	for more := true; more; {
		var hdr tar.Header
		if s.header >= BlockSize && s.ensure(BlockSize) && PlainHeader((*[BlockSize]byte)(s.cur.buf[s.pos:]), &hdr) {
			s.advance(BlockSize)
			more = s.member(&hdr)
		} else {
			more = s.other()
		}
		s.align()
	}
	s.full <- s.cur // never blocks: there are as many places as batches
}

// emit appends an item to the current batch.
func (s *scanner) emit(it item) { s.cur.items = append(s.cur.items, it) }

func (s *scanner) advance(n int) {
	s.pos += n
	s.off += int64(n)
}

// turn makes room for more of the stream and reads that: in another batch if the current one has items, which is handed
// on then. What was not taken apart moves along.
func (s *scanner) turn() {
	if len(s.cur.items) > 0 {
		var b *batch
		select {
		case b = <-s.free:
		case <-s.quit:
			s.err = errQuit
			return
		}
		b.allocate()
		clear(b.items)
		b.items = b.items[:0]
		s.end = copy(b.buf, s.cur.buf[s.pos:s.end])
		s.full <- s.cur
		s.cur = b
	} else {
		s.cur.allocate()
		s.end = copy(s.cur.buf, s.cur.buf[s.pos:s.end])
	}
	s.pos = 0
	s.fill()
}

// fill reads until the batch's memory is full or reading fails.
func (s *scanner) fill() {
	for empty := 0; s.end < len(s.cur.buf) && s.err == nil; {
		n, err := s.r.Read(s.cur.buf[s.end:])
		s.end += n
		s.err = err
		if empty++; n > 0 {
			empty = 0
		} else if empty == 100 && err == nil { // as bufio has it
			s.err = io.ErrNoProgress
		}
		select {
		case <-s.quit:
			s.err = errQuit
		default:
		}
	}
}

// ensure says whether n bytes are there, which may be at most as many as a batch holds.
func (s *scanner) ensure(n int) bool {
	if s.end-s.pos < n && s.err == nil {
		s.turn()
	}
	return s.end-s.pos >= n
}

// Read implements io.Reader for members that archive/tar is to read.
func (s *scanner) Read(p []byte) (int, error) {
	if s.pos == s.end && s.err == nil {
		s.turn()
	}
	if s.pos == s.end {
		return 0, s.err
	}
	n := copy(p, s.cur.buf[s.pos:s.end])
	s.advance(n)
	return n, nil
}

// member emits a member whose content is in the stream as it is, from here on, and says whether the stream goes on.
func (s *scanner) member(hdr *tar.Header) bool {
	it := item{kind: itemMember, hdr: *hdr}
	left := ContentSize(hdr)
	for {
		s.ensure(int(min(left, wholeBytes)))
		n := min(left, int64(s.end-s.pos))
		if n < left && s.err == nil {
			n -= n % holePage
		}
		it.data, it.more = s.cur.buf[s.pos:s.pos+int(n)], n < left
		if s.sums && n == hdr.Size {
			it.sum = xxhash.Sum64(it.data)
		}
		s.emit(it)
		s.advance(int(n))
		switch left -= n; {
		case left == 0:
			return true
		case s.err != nil:
			s.emit(item{kind: itemContent, err: unexpected(s.err)})
			return false
		}
		it = item{kind: itemContent}
	}
}

// align skips the padding behind a member. A stream that breaks off there does so in front of a header.
func (s *scanner) align() {
	n := int(-s.off & (BlockSize - 1))
	s.ensure(n)
	s.advance(min(n, s.end-s.pos))
}

// other emits the next member as archive/tar reads its headers, or the end, and says whether the stream goes on.
func (s *scanner) other() bool {
	g := &guard{r: s, budget: s.header, limit: s.header}
	tr := tar.NewReader(g)
	hdr, err := tr.Next()
	switch {
	case errors.Is(err, io.EOF):
		return s.finish(g.ended && g.zeros < BlockSize)
	case err != nil:
		s.emit(item{kind: itemMember, err: headerError(err, g)})
		return false
	case hdr.Typeflag == tar.TypeXGlobalHeader:
		s.emit(item{kind: itemMember, hdr: *hdr}) // archive/tar has read its content
		return true
	case isSparse(hdr):
		g.budget = -1
		return s.unfold(hdr, tr)
	}
	return s.member(hdr)
}

func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// unfold emits a member whose content archive/tar makes of what is in the stream.
func (s *scanner) unfold(hdr *tar.Header, tr *tar.Reader) bool {
	it := item{kind: itemMember, hdr: *hdr}
	left := ContentSize(hdr)
	for {
		if len(s.cur.items) > 0 {
			s.turn() // a batch has memory for one item of this kind
		}
		if s.cur.unfolded == nil {
			s.cur.unfolded = make([]byte, batchBytes)
		}
		p := s.cur.unfolded[:min(left, batchBytes)]
		_, err := io.ReadFull(tr, p)
		if errors.Is(s.err, errQuit) {
			return false // the claim may be one of exbibytes
		}
		left -= int64(len(p))
		it.data, it.more = p, left > 0 || err != nil
		s.emit(it)
		switch {
		case err != nil:
			s.emit(item{kind: itemContent, err: s.unfoldError(err)})
			return false
		case left == 0:
			return s.unfolded(tr)
		}
		it = item{kind: itemContent}
	}
}

// unfolded makes sure that nothing is left of a member in the stream, which would be taken for headers.
func (s *scanner) unfolded(tr *tar.Reader) bool {
	var one [1]byte
	_, err := tr.Read(one[:])
	if errors.Is(err, io.EOF) {
		return true
	}
	s.emit(item{kind: itemMember, err: s.unfoldError(err)})
	return false
}

// unfoldError is what the reading of a sparse file's content failed with: the stream, or what archive/tar thinks of it.
func (s *scanner) unfoldError(err error) error {
	switch {
	case s.err != nil && !errors.Is(s.err, io.EOF):
		return s.err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return io.ErrUnexpectedEOF
	}
	return fmt.Errorf("sparse file: %w: %w", ErrInvalid, err)
}

// finish emits the end, and what follows the end mark.
func (s *scanner) finish(cut bool) bool {
	s.emit(item{kind: itemEnd, cut: cut})
	for {
		if n := s.end - s.pos; n > 0 {
			s.emit(item{kind: itemPadding, size: int64(n)})
			s.advance(n)
		}
		switch {
		case errors.Is(s.err, io.EOF):
			return false
		case s.err != nil:
			s.emit(item{kind: itemPadding, err: s.err})
			return false
		}
		s.turn()
	}
}

// unexpected is the error of content that ends too early.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// headerError gives the errors of archive/tar the classes of this package. What is not an error of the stream is one of
// its content.
func headerError(err error, g *guard) error {
	switch {
	case g.err != nil || errors.Is(err, io.ErrUnexpectedEOF):
		return err
	case errors.Is(err, tar.ErrFieldTooLong):
		return fmt.Errorf("an extended header is beyond 1 MiB (Limits.Header): %w: %w", ErrLimit, err)
	}
	return fmt.Errorf("no tar header: %w: %w", ErrInvalid, err)
}

// items are what a scanner found, one after the other.
type items struct {
	s *scanner
	// release takes back a batch of which all items were passed through.
	release func(*batch)
	ctx     context.Context // of one Apply
	cur     *batch
	at      int
	// data is the content of the member at hand that nobody has taken yet; more says that there is some behind it.
	data []byte
	sum  uint64
	more bool
}

// next returns the next item, which is valid until the call after it; nil when there is none. It fails with the
// context's error once that is done.
func (i *items) next() (*item, error) {
	for i.cur == nil || i.at == len(i.cur.items) {
		if i.cur != nil {
			i.release(i.cur)
			i.cur, i.at = nil, 0
		}
		var ok bool
		select {
		case i.cur, ok = <-i.s.full:
		case <-i.ctx.Done():
		}
		if err := context.Cause(i.ctx); err != nil {
			return nil, err
		}
		if !ok {
			return nil, nil
		}
	}
	it := &i.cur.items[i.at]
	i.at++
	i.data, i.sum, i.more = it.data, it.sum, it.more
	return it, it.err
}

// piece implements content. The memory is valid until the next call.
func (i *items) piece() ([]byte, error) {
	if len(i.data) == 0 && i.more {
		if _, err := i.next(); err != nil {
			return nil, err
		}
	}
	p := i.data
	i.data = nil
	return p, nil
}

// skip passes by what nobody took of the content of the member at hand.
func (i *items) skip() error {
	for i.more {
		if _, err := i.next(); err != nil {
			return err
		}
	}
	return nil
}

// guard bounds what archive/tar reads to find the next member, and notes how the stream ends.
type guard struct {
	r io.Reader
	// budget is how many bytes may still be read; negative for no bound, in a member's data.
	budget, limit int64
	// ended is set when the stream ended before a header.
	ended bool
	// zeros is the number of zero bytes read last, in whole reads: with a block of them before the end there is an end mark.
	zeros int64
	// err is what reading failed with, but for the end.
	err error
}

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
