package tarlayer_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"plyfs/cow/tarlayer"
	"plyfs/internal/testenv"
)

// headerBlocks are header blocks as archive/tar writes them, in all its formats.
func headerBlocks(t *testing.T) [][]byte {
	t.Helper()
	var blocks [][]byte
	for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatPAX, tar.FormatGNU} {
		for _, h := range []tar.Header{
			{Typeflag: tar.TypeReg, Name: "d/file", Size: 4321, Mode: 0o4755, Uid: 1000, Gid: 0o7777777},
			{Typeflag: tar.TypeReg, Name: "d/größe", Mode: 0o644, Uname: "user", Gname: "group"},
			{Typeflag: tar.TypeReg, Name: strings.Repeat("n", 100), Size: 0o77777777777},
			{Typeflag: tar.TypeReg, Name: strings.Repeat("p/", 70) + "name"},
			{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o1777},
			{Typeflag: tar.TypeSymlink, Name: "l", Linkname: strings.Repeat("t", 100), Mode: 0o777},
			{Typeflag: tar.TypeLink, Name: "h", Linkname: "d/file"},
			{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3},
			{Typeflag: tar.TypeFifo, Name: "fifo"},
		} {
			h.Format, h.ModTime = format, stamp
			var b bytes.Buffer
			if err := tar.NewWriter(&b).WriteHeader(&h); err == nil { // not all can be said in all formats
				blocks = append(blocks, b.Bytes()[:tarlayer.BlockSize])
			}
		}
	}
	return append(blocks, make([]byte, tarlayer.BlockSize))
}

// setSum makes the sum in a header block right.
func setSum(b []byte) {
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
}

// Two readers of one stream must not take it for two different things, whatever the stream is.
func TestPlainHeaderIsWhatArchiveTarReads(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	plain := func(block []byte) bool {
		var got tar.Header
		if !tarlayer.PlainHeader((*[tarlayer.BlockSize]byte)(block), &got) {
			return false
		}
		expected, err := tar.NewReader(bytes.NewReader(block)).Next()
		if err != nil {
			t.Fatalf("archive/tar refuses %q: %v", block, err)
		}
		expected.Uname, expected.Gname, expected.Format = "", "", got.Format
		if !reflect.DeepEqual(*expected, got) {
			t.Fatalf("%q\nis  %+v,\nnot %+v", block, *expected, got)
		}
		return true
	}
	accepted := 0
	for _, block := range headerBlocks(t) {
		if plain(block) {
			accepted++
		}
		mutations := 0
		for range 500 {
			b := bytes.Clone(block)
			for range 1 + r.IntN(3) {
				b[r.IntN(len(b))] = []byte{0, ' ', '0', '7', '8', '/', 0x80, 0xff, byte(r.Uint32())}[r.IntN(9)]
			}
			if r.IntN(8) > 0 {
				setSum(b)
			}
			if plain(b) {
				mutations++
			}
		}
		if plain(block) && mutations == 0 {
			t.Errorf("no mutation of %q is plain: they test nothing", block)
		}
	}
	// What is common must be read without archive/tar, or unpacking is slow.
	want(t, "plain headers", accepted, 18)
}

// chunks gives what another reader has in pieces of all sizes.
type chunks struct {
	r    io.Reader
	size *rand.Rand
}

func (c chunks) Read(p []byte) (int, error) {
	return c.r.Read(p[:min(len(p), 1+c.size.IntN(1<<(1+c.size.IntN(19))))])
}

// However the parts of a stream fall into the memory that it is read to, the files are the same.
func TestApplyContentOfAllSizes(t *testing.T) {
	const k = 1 << 10
	r := rand.New(rand.NewPCG(3, 4))
	var members []member
	expected := make(map[string]string)
	for i, size := range []int{
		0, 1, 511, 512, 513, 4095, 4096, 4097, 64*k - 1, 64 * k, 64*k + 1, 192 * k, 256*k - 512, 256 * k, 256*k + 1, 5, 600*k + 3,
		1024*k + 77, 2,
	} {
		data := make([]byte, size)
		for at := 0; at < size; at += 4096 {
			if r.IntN(3) > 0 { // the rest are holes
				for j := at; j < min(at+4096, size); j++ {
					data[j] = byte(r.Uint32())
				}
			}
		}
		m := file(fmt.Sprintf("d/f%d", i), string(data))
		if i%3 == 1 {
			m = m.xattr("user.x", strings.Repeat("v", i*100))
		}
		members = append(members, m, file(fmt.Sprintf("d/.wh.w%d", i), string(data)))
		expected[m.Name] = string(data)
	}
	full := stream(t, members...)
	for seed := range uint64(4) {
		dir := testenv.Scratch(t)
		_, err := tarlayer.Apply(t.Context(), open(t, dir), chunks{bytes.NewReader(full), rand.New(rand.NewPCG(5, seed))},
			tarlayer.ApplyOptions{Whiteouts: tarlayer.WhiteoutKernel})
		must(t, err)
		for name, data := range expected {
			if content(t, filepath.Join(dir, name)) != data {
				t.Errorf("%s of %d bytes is another one", name, len(data))
			}
		}
	}
	for range 30 {
		cut := r.IntN(len(full) - 1024)
		_, err := tryApply(t, testenv.Scratch(t), tarlayer.ApplyOptions{}, full[:cut])
		wantError(t, fmt.Sprint("cut at ", cut), err, io.ErrUnexpectedEOF)
	}
}

// sparseMember is a sparse file of the PAX form 0.1.
func sparseMember(t *testing.T, name string, size int64, where string, data []byte) []byte {
	t.Helper()
	records := pax("GNU.sparse.major", "0") + pax("GNU.sparse.minor", "1") + pax("GNU.sparse.name", name) +
		pax("GNU.sparse.size", fmt.Sprint(size)) + pax("GNU.sparse.numblocks", fmt.Sprint((strings.Count(where, ",")+1)/2)) +
		pax("GNU.sparse.map", where)
	return append(rawMember(t, tar.TypeXHeader, "pax", []byte(records)), rawMember(t, tar.TypeReg, name, data)...)
}

// Data of a sparse file that its map does not speak of would be taken for the next member.
func TestApplySparseLeavesNothing(t *testing.T) {
	hidden := rawMember(t, tar.TypeReg, "hidden", []byte("x"))
	for _, c := range []struct {
		size  int64
		where string
	}{{512, "0,512"}, {0, "0,0"}, {100, "0,100"}} {
		dir := testenv.Scratch(t)
		s := append(sparseMember(t, "s", c.size, c.where, hidden), make([]byte, 1024)...)
		_, err := tryApply(t, dir, tarlayer.ApplyOptions{}, s)
		wantError(t, c.where, err, tarlayer.ErrInvalid)
		for _, p := range paths(t, dir) {
			if p != "s" {
				t.Errorf("%s: %s was made", c.where, p)
			}
		}
	}
	dir := testenv.Scratch(t)
	s := append(sparseMember(t, "s", 600<<10, "307200,4", []byte("data")), stream(t, file("next", "n"))...)
	_, err := tryApply(t, dir, tarlayer.ApplyOptions{}, s)
	must(t, err)
	want(t, "content", strings.Trim(content(t, filepath.Join(dir, "s")), "\x00"), "data")
	want(t, "what follows", content(t, filepath.Join(dir, "next")), "n")
}

// Who gives up must not wait until all holes of a file are made of nothing.
func TestApplyGivesUpWithinAHole(t *testing.T) {
	broken := errors.New("injected")
	s := sparseMember(t, "s", 1<<60, "0,4", []byte("data"))
	_, err := tryApply(t, testenv.Scratch(t), tarlayer.ApplyOptions{
		Limits: tarlayer.Limits{Bytes: -1}, Mutator: mutator(func(string) error { return broken }),
	}, s)
	wantError(t, "create fails", err, broken)
}

// Some archivers give directories and links a size that nothing in the stream has.
func TestApplySizeOfWhatHasNoContent(t *testing.T) {
	dir := testenv.Scratch(t)
	sized := func(typ byte, name, target string) []byte {
		b := rawMember(t, typ, name, nil)
		copy(b[124:], "00000001000\x00")
		copy(b[157:], target)
		setSum(b)
		return b
	}
	var s []byte
	for _, part := range [][]byte{
		rawMember(t, tar.TypeReg, "f", []byte("file")), sized(tar.TypeDir, "d/", ""),
		sized(tar.TypeLink, "d/h", "f"), sized(tar.TypeSymlink, "l", "d"), stream(t, file("last", "x")),
	} {
		s = append(s, part...)
	}
	_, err := tryApply(t, dir, tarlayer.ApplyOptions{}, s)
	must(t, err)
	wantPaths(t, dir, "d", "d/h", "f", "l", "last")
}

// What is left of paths that come more than once is hashed once, however they come.
func TestApplySumOfRepeatedPaths(t *testing.T) {
	for _, members := range [][]member{
		{file("f", "1"), file("f", "2")},
		{directory("."), file("f", "1"), directory(".").mode(0o700)},
		{file("d/f", "1"), directory("d").mode(0o711)},
		{directory("d").mode(0o711), directory("e"), directory("d").mode(0o700)},
		{directory("d"), file("d/f", "1"), file("d", "file")},
		{file("f", "1"), symlink("l", "f"), hardlink("l", "f")},
		{symlink("l", "d"), file("l/f", "1"), file("d/f", "2")},
	} {
		dir := testenv.Scratch(t)
		res := apply(t, dir, tarlayer.ApplyOptions{Sum: true}, members...)
		var changes []tarlayer.Change
		described := make(map[string]bool)
		for _, m := range members {
			described[strings.Trim(m.Name, "./")] = true
		}
		for _, p := range append(paths(t, dir), ".") {
			if p = strings.Trim(p, "."); described[p] || strings.HasSuffix(p, "/f") {
				changes = append(changes, tarlayer.Change{Path: p, Kind: tarlayer.Add})
			}
		}
		src := tarlayer.NewDirSource(open(t, dir), tarlayer.DirOptions{})
		expected, err := tarlayer.Sum(t.Context(), src, changes)
		must(t, err)
		src.Close()
		want(t, fmt.Sprintf("sum of %q", members[0].Name), res.Sum, expected)
	}
}
