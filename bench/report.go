package bench

import (
	"encoding/json"
	"errors"
	"io"
	"slices"
	"time"
)

// Schema is the version of the JSON form of a Report. It changes when a field is removed or gets another meaning.
const Schema = "plyfs-bench/1"

// Report is the outcome of a run.
type Report struct {
	Schema  string    `json:"schema"`
	Started time.Time `json:"started"`
	Host    Host      `json:"host"`
	// Scale is what the sizes of full runs were divided by.
	Scale   int      `json:"scale"`
	Samples int      `json:"samples"`
	Systems []System `json:"systems"`
	Results []Result `json:"results"`
	Checks  []Check  `json:"checks,omitempty"`
}

// Result is one series of a workload on all systems, in one place.
type Result struct {
	// Series is the name of the workload, or of the quantity where it has several.
	Series   string `json:"series"`
	Workload string `json:"workload"`
	Doc      string `json:"doc"`
	// Place is the medium of layers and uppers, or both joined by a plus sign.
	Place string `json:"place"`
	Unit  Unit   `json:"unit"`
	// Ops is the number of operations in one sample.
	Ops   int    `json:"ops"`
	Cells []Cell `json:"cells"`
	// Base is the system that ratios are to; empty where nothing that they could be to was measured.
	Base string `json:"base,omitempty"`
}

// Cell is a series on one system.
type Cell struct {
	System  string    `json:"system"`
	Samples []float64 `json:"samples"`
	Median  float64   `json:"median"`
	Min     float64   `json:"min"`
	// Ratio is Median divided by that of the result's base, MinRatio the same of Min, PeerRatio is Median divided
	// by that of fuse-overlayfs. 0 where there is nothing to compare with.
	Ratio     float64 `json:"ratio,omitempty"`
	MinRatio  float64 `json:"min_ratio,omitempty"`
	PeerRatio float64 `json:"peer_ratio,omitempty"`
	Skipped   string  `json:"skipped,omitempty"`
	Error     string  `json:"error,omitempty"`
}

func newReport(c Config, h Host) *Report {
	return &Report{
		Schema: Schema, Started: time.Now().UTC().Truncate(time.Second), Host: h, Scale: c.Scale, Samples: c.Samples,
		Systems: c.Systems, Results: []Result{},
	}
}

// add appends a result with its ratios.
func (r *Report) add(res Result) {
	base, hasBase := res.base()
	peer, hasPeer := res.cell(FuseOverlayfs)
	if hasBase {
		res.Base = base.System
	}
	for i := range res.Cells {
		c := &res.Cells[i]
		if hasBase {
			c.Ratio, c.MinRatio = ratio(c.Median, base.Median), ratio(c.Min, base.Min)
		}
		if hasPeer {
			c.PeerRatio = ratio(c.Median, peer.Median)
		}
	}
	r.Results = append(r.Results, res)
}

// ratio is a/b, or 0 where that means nothing.
func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// cell returns the cell of a system that has samples.
func (r Result) cell(system string) (Cell, bool) {
	i := slices.IndexFunc(r.Cells, func(c Cell) bool { return c.System == system && len(c.Samples) > 0 })
	if i < 0 {
		return Cell{}, false
	}
	return r.Cells[i], true
}

// base returns the cell that the others are compared with: that of the kernel's overlayfs, by whomever it is mounted, or of
// what everybody has.
func (r Result) base() (Cell, bool) {
	for _, system := range []string{KernelOverlay, EngineKernel, SnapshotterOverlay, StoreTar, StoreOverlay2} {
		if c, ok := r.cell(system); ok && c.Median != 0 {
			return c, true
		}
	}
	return Cell{}, false
}

// failed says that a system could not be measured.
func (r Result) failed() bool {
	return slices.ContainsFunc(r.Cells, func(c Cell) bool { return c.Error != "" })
}

// WriteJSON writes the report, indented.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// recorder collects the samples of a workload.
type recorder struct {
	w     Workload
	place Place
	cells []recording
	ops   int
}

// recording is what came from one system.
type recording struct {
	system  string
	samples map[string][]float64 // by series
	failed  int
	err     string
	skipped string
}

// maxFailures is how many failed samples end the attempts of a system at a workload.
const maxFailures = 2

func newRecorder(w Workload, place Place, systems []System) *recorder {
	r := &recorder{w: w, place: place}
	for _, s := range systems {
		r.cells = append(r.cells, recording{system: s.Name, samples: make(map[string][]float64)})
	}
	return r
}

// given says that there is no use in more samples of the i-th system.
func (r *recorder) given(i int) bool {
	return r.cells[i].skipped != "" || r.cells[i].failed >= maxFailures
}

// add records the outcome of one sample of the i-th system.
func (r *recorder) add(i int, m message, err error) {
	c := &r.cells[i]
	var skip *SkipError
	switch {
	case errors.As(err, &skip):
		c.skipped = skip.Reason
		return
	case err != nil:
		c.failed++
		c.err = err.Error()
		return
	}
	r.ops = max(r.ops, m.Ops)
	if len(r.w.Series) == 0 {
		c.samples[r.w.Name] = append(c.samples[r.w.Name], float64(m.Elapsed))
	}
	for _, s := range r.w.Series {
		// A system without an index reports nothing of its index.
		if v, ok := m.Values[s.Name]; ok {
			c.samples[s.Name] = append(c.samples[s.Name], v)
		}
	}
}

// results returns one result for each series.
func (r *recorder) results() []Result {
	series := r.w.Series
	if len(series) == 0 {
		series = []Series{{Name: r.w.Name, Unit: Nanoseconds}}
	}
	var out []Result
	for _, s := range series {
		res := Result{
			Series: s.Name, Workload: r.w.Name, Doc: r.w.Doc, Place: r.place.String(), Unit: s.Unit, Ops: r.ops,
		}
		for _, c := range r.cells {
			cell := Cell{System: c.system, Samples: c.samples[s.Name], Skipped: c.skipped, Error: c.err}
			if cell.Samples == nil {
				cell.Samples = []float64{}
			}
			cell.Median, cell.Min = median(cell.Samples), minimum(cell.Samples)
			res.Cells = append(res.Cells, cell)
		}
		out = append(out, res)
	}
	return out
}

// median returns the middle value, the mean of both where there are two, and 0 for none.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	mid := len(s) / 2
	if len(s)%2 == 1 {
		return s[mid]
	}
	return (s[mid-1] + s[mid]) / 2
}

func minimum(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	return slices.Min(v)
}
