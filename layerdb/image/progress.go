package image

import (
	"io"
	"sync/atomic"
)

// Phase is what happens to a layer.
type Phase string

// The phases, in the order in which a layer goes through them.
const (
	PhaseDownload Phase = "download"
	PhaseUnpack   Phase = "unpack"
	PhaseExists   Phase = "exists"
	PhasePack     Phase = "pack"
	PhaseUpload   Phase = "upload"
	PhaseDone     Phase = "done"
)

// Progress is how far one layer of an image is.
type Progress struct {
	// Layer names the layer: the digest of its blob, or its DiffID where that is not known.
	Layer string
	Phase Phase
	// Done and Total are bytes; Total is negative where it is not known.
	Done, Total int64
}

// Report is told about progress. It is called from several goroutines, one call for each read: it must be quick.
type Report func(Progress)

func (r Report) say(p Progress) {
	if r != nil {
		r(p)
	}
}

// counting reports what is read from r as progress from a state.
type counting struct {
	r      io.Reader
	report Report
	p      Progress
	done   *atomic.Int64
}

// counted returns r, reporting if somebody wants to know.
func (r Report) counted(src io.Reader, p Progress) io.Reader {
	if r == nil {
		return src
	}
	c := &counting{r: src, report: r, p: p, done: new(atomic.Int64)}
	c.done.Store(p.Done)
	return c
}

// Read implements io.Reader.
func (c *counting) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	p := c.p
	p.Done = c.done.Add(int64(n))
	c.report(p)
	return n, err
}
