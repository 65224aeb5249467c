package layerdb

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"path"
	"strconv"
	"strings"

	splittar "github.com/vbatts/tar-split/archive/tar"
	"github.com/vbatts/tar-split/tar/storage"

	"plyfs/cow/ovl"
	"plyfs/cow/tarlayer"
	"plyfs/drivers"
)

// splitter writes what is not content of a tar stream in tar-split's form: JSON, one entry a line. It finds out whether the tree that the stream is unpacked to will give the content
// again.
type splitter struct {
	w    io.Writer
	line []byte // the entry at hand, written out
	buf  []byte
	pos  int
	// bytes counts what the entries stand for. It is less than the stream if the reader made something of it that is not in
	// the stream: a sparse file has fewer bytes there than it is long.
	bytes int64
	// names are the members, cleaned.
	names map[string]member
	// implied has the directories that members with content are in, true for those that no member described before: the layers
	// below may have a symlink there.
	implied map[string]bool
	// anyImplied says that one of them is true.
	anyImplied bool
	// inexact is why the tree will not do; "" if it will.
	inexact string
}

// entries reads what a splitter wrote. Unlike storage.NewJSONUnpacker it has nothing against a name that comes twice.
type entries struct{ dec *json.Decoder }

func newEntries(r io.Reader) entries { return entries{json.NewDecoder(r)} }

// Next implements storage.Unpacker.
func (e entries) Next() (*storage.Entry, error) {
	var entry storage.Entry
	err := e.dec.Decode(&entry)
	if err == nil || err == io.EOF {
		return &entry, err
	}
	return nil, fmt.Errorf("headers of the stream: %w: %w", drivers.ErrDamaged, err)
}

// member is what the splitter remembers of a name.
type member uint8

const (
	memberContent member = 1 << iota // it has content
	memberDir                        // its name ends as that of a directory
)

func newSplitter(w io.Writer) *splitter {
	return &splitter{w: w, names: make(map[string]member), implied: make(map[string]bool)}
}

// run reads the whole stream. The error is that of reading or writing; a stream that is not a tar stream, or that the tree
// will not give again, makes inexact say so, and is read no further.
func (s *splitter) run(r io.Reader) error {
	source := &errorReader{r: r}
	err := s.split(source)
	switch {
	case source.err != nil:
		return source.err
	case errors.Is(err, errInexact):
		return nil
	case err == nil:
		s.checkAncestors()
		return nil
	}
	var failed writeError
	if errors.As(err, &failed) {
		return err
	}
	s.inexact = "tar-split cannot read it: " + err.Error()
	return nil
}

// errInexact ends a run early.
var errInexact = errors.New("not exact")

// writeError is an error of writing entries.
type writeError struct{ error }

func (e writeError) Unwrap() error { return e.error }

// errorReader remembers why its reader failed, so that it can be told from a stream that makes no sense.
type errorReader struct {
	r   io.Reader
	err error
}

func (e *errorReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if err != nil && err != io.EOF {
		e.err = err
	}
	return n, err
}

func (s *splitter) split(r io.Reader) error {
	in := bufio.NewReaderSize(r, splitBuffer)
	for {
		// The padding behind a member and the header of the next one are one segment.
		pad := int(-s.bytes & (tarlayer.BlockSize - 1))
		b, _ := in.Peek(pad + tarlayer.BlockSize) // the error comes again
		var hdr tar.Header
		if len(b) < pad+tarlayer.BlockSize || !tarlayer.PlainHeader((*[tarlayer.BlockSize]byte)(b[pad:]), &hdr) {
			if more, err := s.other(in, b[:min(pad, len(b))]); err != nil {
				return err
			} else if !more {
				break
			}
			continue
		}
		if err := s.segment(b); err != nil {
			return err
		}
		if _, err := in.Discard(len(b)); err != nil {
			return err
		}
		if err := s.see(hdr.Name, hdr.Typeflag, tarlayer.ContentSize(&hdr)); err != nil {
			return err
		}
		sum, err := sumBytes(in, tarlayer.ContentSize(&hdr))
		if err != nil {
			return err
		}
		if err := s.file(hdr.Name, tarlayer.ContentSize(&hdr), sum); err != nil {
			return err
		}
	}
	return s.rest(in)
}

// splitBuffer is how much of a stream a splitter looks at, in bytes.
const splitBuffer = 64 << 10

// sumBytes reads n bytes and returns the checksum that tar-split has of them.
func sumBytes(in *bufio.Reader, n int64) (sum uint64, err error) {
	for n > 0 {
		if in.Buffered() == 0 {
			if _, err := in.Peek(1); err != nil {
				return 0, io.ErrUnexpectedEOF
			}
		}
		p, err := in.Peek(int(min(n, int64(in.Buffered()))))
		if err != nil {
			return 0, err
		}
		sum = crc64.Update(sum, storage.CRCTable, p)
		n -= int64(len(p))
		if _, err := in.Discard(len(p)); err != nil {
			return 0, err
		}
	}
	return sum, nil
}

// other splits a member with headers that take tar-split's own reader, and the padding in front of it. It says whether
// there was one.
func (s *splitter) other(in *bufio.Reader, padding []byte) (more bool, err error) {
	front := bytes.Clone(padding)
	if _, err := in.Discard(len(padding)); err != nil {
		return false, err
	}
	tr := splittar.NewReader(in)
	tr.RawAccounting = true
	hdr, err := tr.Next()
	if err != nil && err != io.EOF { //nolint:errorlint // a wrapped one is not the end of the stream
		return false, err
	}
	if err := s.segment(append(front, tr.RawBytes()...)); err != nil {
		return false, err
	}
	if hdr == nil { // the end
		return false, nil
	}
	if isSparse(hdr) {
		return false, s.doubt(hdr.Name + " is sparse")
	}
	size := tarlayer.ContentSize(&tar.Header{Typeflag: hdr.Typeflag, Size: hdr.Size})
	if err := s.see(hdr.Name, hdr.Typeflag, size); err != nil {
		return false, err
	}
	sum := crc64.New(storage.CRCTable)
	if n, err := io.CopyBuffer(sum, onlyReader{tr}, s.buffer()); err != nil {
		return false, err
	} else if n != size {
		return false, io.ErrUnexpectedEOF
	}
	if err := s.file(hdr.Name, size, sum.Sum64()); err != nil {
		return false, err
	}
	return true, s.segment(tr.RawBytes())
}

// onlyReader hides that a reader could write itself somewhere, with a buffer of its own.
type onlyReader struct{ io.Reader }

func (s *splitter) buffer() []byte {
	if s.buf == nil {
		s.buf = make([]byte, splitBuffer)
	}
	return s.buf
}

// rest keeps what follows the end mark.
func (s *splitter) rest(r io.Reader) error {
	if s.bytes%tarlayer.BlockSize != 0 {
		return s.doubt("the padding of its last member is cut")
	}
	buf := s.buffer()
	for {
		n, err := r.Read(buf)
		if err := s.segment(buf[:n]); err != nil {
			return err
		}
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// segment keeps bytes that are not content.
func (s *splitter) segment(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	s.bytes += int64(len(b))
	return s.add(storage.Entry{Type: storage.SegmentType, Payload: b})
}

// file keeps the place of a member's content.
func (s *splitter) file(name string, size int64, sum uint64) error {
	s.bytes += size
	entry := storage.Entry{Type: storage.FileType, Size: size}
	entry.SetName(name)
	if size > 0 {
		entry.Payload = binary.BigEndian.AppendUint64(nil, sum)
	}
	return s.add(entry)
}

func (s *splitter) add(e storage.Entry) error {
	e.Position = s.pos
	s.pos++
	var err error
	if s.line, err = appendEntry(s.line[:0], e); err != nil {
		return writeError{err}
	}
	if _, err := s.w.Write(s.line); err != nil {
		return writeError{err}
	}
	return nil
}

// appendEntry appends the entry as encoding/json has it, and a newline. There are two for each file, and nothing in
// them takes reflection.
func appendEntry(b []byte, e storage.Entry) ([]byte, error) {
	b = strconv.AppendInt(append(b, `{"type":`...), int64(e.Type), 10)
	if e.Name != "" {
		name, err := json.Marshal(e.Name)
		if err != nil {
			return nil, err
		}
		b = append(append(b, `,"name":`...), name...)
	}
	if len(e.NameRaw) > 0 {
		b = appendBytes(append(b, `,"name_raw":`...), e.NameRaw)
	}
	if e.Size != 0 {
		b = strconv.AppendInt(append(b, `,"size":`...), e.Size, 10)
	}
	b = appendBytes(append(b, `,"payload":`...), e.Payload)
	b = strconv.AppendInt(append(b, `,"position":`...), int64(e.Position), 10)
	return append(b, "}\n"...), nil
}

func appendBytes(b, value []byte) []byte {
	if value == nil {
		return append(b, "null"...)
	}
	return append(base64.StdEncoding.AppendEncode(append(b, '"'), value), '"')
}

// see looks whether the content of the member, and of those before it, will be in the tree under its name.
func (s *splitter) see(memberName string, typ byte, size int64) error {
	name := path.Clean("/" + memberName)
	var is member
	if size > 0 {
		is |= memberContent
	}
	if typ == tar.TypeDir || strings.HasSuffix(memberName, "/") {
		is |= memberDir
	}
	before, twice := s.names[name]
	base := path.Base(name)
	switch {
	case twice && (before|is)&memberDir == 0 && (before|is)&memberContent != 0:
		return s.doubt(memberName + " is in it more than once")
	case twice && before != is:
		return s.doubt(memberName + " is in it as different things")
	case is&memberContent != 0 && hasAUFSName(name):
		// A whiteout with content, or beneath what AUFS kept its books in: neither is unpacked.
		return s.doubt(memberName + " has content that is not unpacked")
	case ovl.IsAUFSName(base):
		victim, ok := ovl.AUFSVictim(base)
		if victim = path.Join(path.Dir(name), victim); ok && (s.names[victim] != 0 || s.implied[victim]) {
			return s.doubt(memberName + " hides a member of the same layer")
		}
		if base == ovl.AUFSOpaque && s.impliedBeneath(path.Dir(name)) {
			return s.doubt(memberName + " may hide a symlink of the layers below that members before it came through")
		}
	case s.implied[name]:
		return s.doubt(memberName + " comes after members beneath it, which may have come through a symlink of the layers below")
	}
	s.names[name] = is
	if is&memberContent != 0 {
		s.imply(path.Dir(name))
	}
	return nil
}

// imply notes the directory and those above it.
func (s *splitter) imply(dir string) {
	for ; dir != "/"; dir = path.Dir(dir) {
		if _, known := s.implied[dir]; known {
			return
		}
		_, described := s.names[dir]
		s.implied[dir] = !described
		s.anyImplied = s.anyImplied || !described
	}
}

// impliedBeneath says whether there is an implied directory beneath dir.
func (s *splitter) impliedBeneath(dir string) bool {
	if !s.anyImplied {
		return false
	}
	for i, is := range s.implied {
		if is && (dir == "/" || strings.HasPrefix(i, dir+"/")) {
			return true
		}
	}
	return false
}

// hasAUFSName says whether a component of the path is a name of the AUFS form.
func hasAUFSName(path string) bool {
	for component := range strings.SplitSeq(path, "/") {
		if ovl.IsAUFSName(component) {
			return true
		}
	}
	return false
}

// isSparse says whether the member's type or PAX records make it sparse.
func isSparse(hdr *splittar.Header) bool {
	if hdr.Typeflag == splittar.TypeGNUSparse {
		return true
	}
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func (s *splitter) doubt(why string) error {
	s.inexact = why
	return errInexact
}

// checkAncestors looks for content beneath a member that is no directory: it is behind a symlink, or was replaced.
func (s *splitter) checkAncestors() {
	good := map[string]bool{"/": true, ".": true}
	for name, is := range s.names {
		if is&memberContent == 0 {
			continue
		}
		for dir := path.Dir(name); !good[dir]; dir = path.Dir(dir) {
			if is, there := s.names[dir]; there && is&memberDir == 0 {
				s.inexact = dir + " is not a directory, but has members beneath it"
				return
			}
			good[dir] = true
		}
	}
}
