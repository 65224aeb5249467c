package layerdb

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"path"
	"strings"

	"github.com/vbatts/tar-split/archive/tar"
	"github.com/vbatts/tar-split/tar/storage"

	"plyfs/cow/ovl"
	"plyfs/drivers"
)

// splitter writes what is not content of a tar stream in tar-split's form: JSON, one entry a line. It finds out whether the tree that the stream is unpacked to will give the content
// again.
type splitter struct {
	enc *json.Encoder
	pos int
	// bytes counts what the entries stand for. It is less than the stream if the reader made something of it that is not in
	// the stream: a sparse file has fewer bytes there than it is long.
	bytes int64
	// names are the members, cleaned.
	names map[string]member
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
	return &splitter{enc: json.NewEncoder(w), names: make(map[string]member)}
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
	tr := tar.NewReader(r)
	tr.RawAccounting = true
	sum := crc64.New(storage.CRCTable)
	buf := make([]byte, 64<<10)
	for {
		hdr, err := tr.Next()
		if err != nil && err != io.EOF { //nolint:errorlint // a wrapped one is not the end of the stream
			return err
		}
		if err := s.segment(tr.RawBytes()); err != nil {
			return err
		}
		if err != nil || hdr == nil {
			break
		}
		if err := s.see(hdr); err != nil {
			return err
		}
		entry := storage.Entry{Type: storage.FileType, Size: hdr.Size}
		entry.SetName(hdr.Name)
		if hdr.Size > 0 {
			sum.Reset()
			n, err := io.CopyBuffer(sum, onlyReader{tr}, buf)
			if err != nil {
				return err
			}
			s.bytes += n
			entry.Payload = sum.Sum(nil)
		}
		if err := s.add(entry); err != nil {
			return err
		}
		if err := s.segment(tr.RawBytes()); err != nil {
			return err
		}
	}
	return s.rest(r, buf)
}

// rest keeps what follows the end mark.
func (s *splitter) rest(r io.Reader, buf []byte) error {
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

// onlyReader hides that a reader could write itself somewhere, with a buffer of its own.
type onlyReader struct{ io.Reader }

// segment keeps bytes that are not content.
func (s *splitter) segment(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	s.bytes += int64(len(b))
	return s.add(storage.Entry{Type: storage.SegmentType, Payload: b})
}

func (s *splitter) add(e storage.Entry) error {
	e.Position = s.pos
	s.pos++
	if err := s.enc.Encode(e); err != nil {
		return writeError{err}
	}
	return nil
}

// see looks whether the content of the member, and of those before it, will be in the tree under its name.
func (s *splitter) see(hdr *tar.Header) error {
	name := path.Clean("/" + hdr.Name)
	var is member
	if hdr.Size > 0 {
		is |= memberContent
	}
	if hdr.Typeflag == tar.TypeDir || strings.HasSuffix(hdr.Name, "/") {
		is |= memberDir
	}
	before, twice := s.names[name]
	base := path.Base(name)
	switch {
	case twice && (before|is)&memberDir == 0 && (before|is)&memberContent != 0:
		return s.doubt(hdr.Name + " is in it more than once")
	case twice && before != is:
		return s.doubt(hdr.Name + " is in it as different things")
	case ovl.IsAUFSName(base) && is&memberContent != 0:
		return s.doubt(hdr.Name + " is a whiteout with content")
	case ovl.IsAUFSName(base):
		if victim, ok := ovl.AUFSVictim(base); ok && s.names[path.Join(path.Dir(name), victim)] != 0 {
			return s.doubt(hdr.Name + " hides a member of the same layer")
		}
	case hdr.Typeflag == tar.TypeGNUSparse || sparse(hdr):
		return s.doubt(hdr.Name + " is sparse")
	}
	s.names[name] = is
	return nil
}

// sparse says whether PAX records make the member sparse.
func sparse(hdr *tar.Header) bool {
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
