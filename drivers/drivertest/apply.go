package drivertest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
)

// The sums of the streams that caseApplySum unpacks, whatever the driver.
const (
	sumOfKnown = 0x623e912fd8e5b316
	sumOfLink  = 0xdd3e5446815cc2b7
)

func applyCases() []aCase {
	return []aCase{
		{"ApplySum", caseApplySum},
		{"ApplyUnterminated", caseApplyUnterminated},
		{"ApplySideBySide", caseApplySideBySide},
		{"ApplySideBySideFails", caseApplySideBySideFails},
	}
}

// caseApplySum: the result has the sum of what was unpacked, which is the same with every driver.
func caseApplySum(e *env) {
	e.must(e.d.Create(ctx(), "base", "", nil))
	_, err := e.apply("base", archive(e.T, member{name: "victim", content: "v"}), nil)
	e.must(err)
	e.must(e.d.Create(ctx(), "l", "base", nil))
	res, err := e.apply("l", archive(e.T, member{name: "d/"}, member{name: "d/f", content: "content"},
		member{name: "victim", gone: true}, member{name: "noise", size: 100_000}), nil)
	e.must(err)
	if res.Sum != sumOfKnown {
		e.Errorf("sum %#x, want %#x", res.Sum, uint64(sumOfKnown))
	}
	streams := stacked(e.T)
	e.must(e.d.Create(ctx(), "s0", "", nil))
	_, err = e.apply("s0", bytes.NewReader(streams[0]), nil)
	e.must(err)
	e.must(e.d.Create(ctx(), "s1", "s0", nil))
	res, err = e.apply("s1", bytes.NewReader(streams[1]), nil)
	e.must(err)
	if res.Sum != sumOfLink {
		e.Errorf("sum %#x of a hard link to a file below, want %#x", res.Sum, uint64(sumOfLink))
	}
}

// caseApplyUnterminated: a stream without end mark is taken by those who say so, and by nobody else.
func caseApplyUnterminated(e *env) {
	whole, err := io.ReadAll(archive(e.T, member{name: "f", content: "f"}))
	e.must(err)
	endless := whole[:1024] // a header and a block of content
	e.must(e.d.Create(ctx(), "no", "", nil))
	_, err = e.apply("no", bytes.NewReader(endless), nil)
	e.wants(err, io.ErrUnexpectedEOF)
	e.must(e.d.Create(ctx(), "yes", "", nil))
	res, err := e.apply("yes", bytes.NewReader(endless), &drivers.ApplyOptions{AcceptUnterminated: true})
	e.must(err)
	if res.Entries != 1 {
		e.Errorf("%d entries, want 1", res.Entries)
	}
}

func (e *env) apply(id string, r io.Reader, o *drivers.ApplyOptions) (tarlayer.ApplyResult, error) {
	return drivers.DifferOf(e.d).ApplyDiff(ctx(), id, r, o)
}

// stacked are the streams of layers that need what is below them: for hard links, for directories that they imply, and for
// the root.
func stacked(t testing.TB) [][]byte {
	t.Helper()
	at := func(h tar.Header) tar.Header {
		h.ModTime = time.Unix(1_600_000_000, 0)
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		return h
	}
	var streams [][]byte
	for i, members := range [][]tar.Header{
		{
			{Name: "./", Typeflag: tar.TypeDir, Mode: 0o711},
			{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o2750, Uid: 1, Gid: 2},
			{Name: "d/f", Typeflag: tar.TypeReg, Size: 4},
			{Name: "g", Typeflag: tar.TypeReg, Size: 4},
		},
		{{Name: "d/hard", Typeflag: tar.TypeLink, Linkname: "d/f"}},
		{{Name: "d/sub/", Typeflag: tar.TypeDir, Mode: 0o700}, {Name: "d/sub/new", Typeflag: tar.TypeReg, Size: 4}},
		{{Name: "d/sub/hard", Typeflag: tar.TypeLink, Linkname: "d/hard"}, {Name: "g2", Typeflag: tar.TypeLink, Linkname: "g"}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, m := range members {
			h := at(m)
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(fmt.Appendf(nil, "%04d", i)[:h.Size]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		streams = append(streams, b.Bytes())
	}
	return streams
}

// sideBySide makes layers of streams on top of each other and unpacks them at once, the topmost first.
func (e *env) sideBySide(prefix string, streams [][]byte) (ids []string, err error) {
	e.Helper()
	parent := ""
	for i := range streams {
		id := fmt.Sprint(prefix, i)
		e.must(e.d.Create(ctx(), id, parent, nil))
		ids, parent = append(ids, id), id
	}
	failed, fail := context.WithCancelCause(ctx())
	defer fail(nil)
	complete := make([]chan struct{}, len(streams))
	for i := range complete {
		complete[i] = make(chan struct{})
	}
	errs := make([]error, len(streams))
	var all sync.WaitGroup
	for i, stream := range slices.Backward(streams) {
		all.Go(func() {
			_, err := e.apply(ids[i], bytes.NewReader(stream), &drivers.ApplyOptions{Below: func(context.Context) error {
				for _, c := range complete[:i] {
					select {
					case <-c:
					case <-failed.Done():
						return context.Cause(failed)
					}
				}
				return nil
			}})
			if errs[i] = err; err != nil {
				fail(err)
				return
			}
			close(complete[i])
		})
	}
	all.Wait()
	return ids, errors.Join(errs...)
}

// caseApplySideBySide: layers that are unpacked at once show what they show when they are unpacked one after the other.
func caseApplySideBySide(e *env) {
	if p, ok := e.d.(drivers.ParallelApplier); !ok || !p.ParallelApply() {
		return // it promises nothing of the kind
	}
	streams := stacked(e.T)
	parent := ""
	for i, stream := range streams {
		id := fmt.Sprint("seq", i)
		e.must(e.d.Create(ctx(), id, parent, nil))
		_, err := e.apply(id, bytes.NewReader(stream), nil)
		e.must(err)
		parent = id
	}
	ids, err := e.sideBySide("par", streams)
	e.must(err)
	for i, id := range ids {
		e.same(fmt.Sprint("seq", i), id)
	}
}

// caseApplySideBySideFails: one in the middle fails, those above it that need it fail too, and all can be removed.
func caseApplySideBySideFails(e *env) {
	if p, ok := e.d.(drivers.ParallelApplier); !ok || !p.ParallelApply() {
		return
	}
	streams := stacked(e.T)
	streams[1] = streams[1][:700]
	ids, err := e.sideBySide("l", streams)
	e.wants(err, io.ErrUnexpectedEOF)
	for _, id := range slices.Backward(ids) {
		e.must(e.d.Remove(ctx(), id))
	}
	if left, err := e.ids(); err != nil || len(left) > 0 {
		e.Errorf("left: %v, %v", left, err)
	}
}
