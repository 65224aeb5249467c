package bench

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// Row is one demand on plyfs: what a series of a workload may be at most, by a comparison.
type Row struct {
	// Series is the name of a workload, or of one of its series.
	Series string
	// Place is where layers and upper are; empty for anywhere but loop.
	Place string
	// Data is the data mode that the demand is about, System the only system; both empty for each variant of plyfs.
	Data   DataMode
	System string
	// By says with what the median is compared, Base names it where there is a choice.
	By   Comparison
	Base string
	// Max is the largest value that will do: a ratio, or in the unit of the series.
	Max float64
	// PeerLow and PeerHigh are the ratios that fuse-overlayfs 1.17 had on the machine where the demands were set.
	PeerLow, PeerHigh float64
}

// Comparison says how a demand is put.
type Comparison int

const (
	// OfKernel is the part of what the kernel's overlayfs takes.
	OfKernel Comparison = iota
	// OfSeries is the part of what another series, Base, has on the same system in the same place.
	OfSeries
	// OfSystem is the part of what the system Base takes.
	OfSystem
	// OverSystem is the difference to what the system Base takes.
	OverSystem
	// Absolute is the value itself.
	Absolute
)

// PeerMax is the largest part of fuse-overlayfs's time that plyfs may take in any workload.
const PeerMax = 0.8

// Rows returns the demands.
func Rows() []Row {
	const tmpfs, ext4 = tmpfsMedium, ext4Medium
	var rows []Row
	for _, layers := range []int{1, 32, 100} {
		for _, mode := range []string{"stat", "readdir"} {
			series := fmt.Sprintf("walk-warm-%s-%d", mode, layers)
			rows = append(rows, Row{Series: series, Max: 1.0, PeerLow: 0.7, PeerHigh: 1.0})
		}
	}
	rows = slices.Concat(rows, indexRows(), storeRows(), engineRows())
	rows = append(rows,
		Row{Series: "absent-warm-32", Max: 1.0, PeerLow: 0.7, PeerHigh: 1.0},
		Row{Series: "walk-first-stat-32", Place: tmpfs, Max: 1.5, PeerLow: 3.6, PeerHigh: 3.6},
		Row{Series: "open-hot", Data: NoOpen, Max: 1.0, PeerLow: 2.9, PeerHigh: 2.9},
		Row{Series: "open-first", Place: tmpfs, Max: 2.0, PeerLow: 3.1, PeerHigh: 4.5},
	)
	for _, kind := range []string{"seq", "rand", "mmap"} {
		for _, phase := range []string{"first", "warm"} {
			rows = append(rows, Row{Series: "read-" + kind + "-" + phase, Data: Passthrough, Max: 1.2, PeerLow: 1.1, PeerHigh: 3})
		}
	}
	return append(rows,
		Row{Series: "write-seq", Place: tmpfs, Data: Passthrough, Max: 1.2, PeerLow: 3.4, PeerHigh: 3.4},
		Row{Series: "write-rand", Place: tmpfs, Data: Passthrough, Max: 1.5, PeerLow: 16, PeerHigh: 16},
		Row{Series: "create", Place: tmpfs, Max: 3.2, PeerLow: 3.9, PeerHigh: 3.9},
		Row{Series: "untar", Place: tmpfs, Max: 4.5, PeerLow: 6, PeerHigh: 8},
		Row{Series: "unlink-upper", Place: tmpfs, Max: 3, PeerLow: 5.9, PeerHigh: 5.9},
		Row{Series: "unlink-lower", Place: tmpfs, Max: 4, PeerLow: 17, PeerHigh: 17},
		Row{Series: "mkdir-rmdir", Place: tmpfs, Max: 4, PeerLow: 5.6, PeerHigh: 5.6},
		Row{Series: "rename-lower", Place: tmpfs, Max: 3, PeerLow: 5.7, PeerHigh: 5.7},
		Row{Series: "append-lower", Place: tmpfs, Max: 3, PeerLow: 4.1, PeerHigh: 4.1},
		Row{Series: "append-lower", Place: ext4, Max: 0.6, PeerLow: 0.85, PeerHigh: 0.85},
		Row{Series: "chown-lower", Place: tmpfs, Max: 2.5, PeerLow: 7.8, PeerHigh: 7.8},
		Row{Series: "chown-lower", Place: ext4, Max: 0.2, PeerLow: 0.3, PeerHigh: 0.3},
		Row{Series: "parallel-open", Place: tmpfs, Max: 1.2, PeerLow: 3.4, PeerHigh: 3.4},
		Row{Series: "parallel-create", Place: tmpfs, Max: 3, PeerLow: 4.2, PeerHigh: 4.2},
	)
}

// indexRows are the demands on plyfs with an index. What needs 1,000,000 files is demanded on tmpfs only.
func indexRows() []Row {
	rows := []Row{
		{Series: "walk-first-stat-1", Max: 1.2},
		{Series: "walk-first-stat-500", By: OfSeries, Base: "walk-first-stat-1", Max: 1.3},
		{Series: "walk-first-image-500", By: OfSeries, Base: "walk-first-stat-1", Max: 1.3},
		{Series: "walk-first-stat-32", Max: 0.6},
		{Series: "walk-first-stat-100", Max: 0.4},
		{Series: "walk-cold-stat-32", Place: loopMedium, Max: 0.4},
		{Series: "walk-cold-stat-100", Place: loopMedium, Max: 0.4},
		{Series: "absent-first-32", Max: 1.0},
		{Series: firstAnswer, Place: tmpfsMedium, By: OverSystem, Base: Plyfs + "-" + string(NoOpen), Max: 30e6},
		{Series: indexMemory, Place: tmpfsMedium, By: Absolute, Max: 40 << 20},
		// With 50 mounts, pages that all of them have make 0.02.
		{Series: mountsShared, Place: tmpfsMedium, By: OfSeries, Base: mountsMapped, Max: 0.1},
		{Series: indexRate, Place: tmpfsMedium, By: Absolute, Max: 1e9 / 200_000},
		{Series: indexSize, Place: tmpfsMedium, By: Absolute, Max: 150},
	}
	for i := range rows {
		rows[i].System = PlyfsIndex
	}
	return rows
}

// Check is the verdict on one demand for one system.
type Check struct {
	// Against is the system, or the other series, that was compared with; empty for none.
	Against  string `json:"against"`
	Workload string `json:"workload"`
	Place    string `json:"place"`
	System   string `json:"system"`
	// Ratio is that of the medians; 0 for a demand that is no ratio: then Value and Max are in Unit.
	Ratio    float64 `json:"ratio"`
	MinRatio float64 `json:"min_ratio,omitempty"`
	Value    float64 `json:"value,omitempty"`
	Unit     Unit    `json:"unit,omitempty"`
	Max      float64 `json:"max"`
	// Pass compares the ratio, rounded to two decimals, or the value.
	Pass bool `json:"pass"`
	// Peer is the ratio of fuse-overlayfs in this run, PeerLow and PeerHigh those it had when the demand was set.
	Peer     float64 `json:"peer,omitempty"`
	PeerLow  float64 `json:"peer_low,omitempty"`
	PeerHigh float64 `json:"peer_high,omitempty"`
}

// Judge returns a verdict for each demand that the results say something about, and one against fuse-overlayfs for
// each result of plyfs.
func Judge(results []Result) []Check {
	var out []Check
	for _, row := range Rows() {
		for _, res := range results {
			if res.Series == row.Series && row.isOn(res.Place) {
				out = append(out, row.judge(res, results)...)
			}
		}
	}
	for _, res := range results {
		for _, c := range res.Cells {
			if strings.HasPrefix(c.System, Plyfs+"-") && c.PeerRatio != 0 {
				out = append(out, Check{
					Against: FuseOverlayfs, Workload: res.Series, Place: res.Place, System: c.System,
					Ratio: c.PeerRatio, Max: PeerMax, Pass: within(c.PeerRatio, PeerMax),
				})
			}
		}
	}
	return out
}

// isOn says whether the demand is about a place.
func (row Row) isOn(place string) bool {
	return row.Place == place || row.Place == "" && place != loopMedium
}

// isAbout says whether the demand is on a system.
func (row Row) isAbout(system string) bool {
	if row.System != "" {
		return system == row.System
	}
	mode, ok := strings.CutPrefix(system, Plyfs+"-")
	return ok && (row.Data == "" || mode == string(row.Data))
}

// judge compares the cells of plyfs that the demand is about. A cell without a counterpart has no verdict.
func (row Row) judge(res Result, results []Result) []Check {
	var out []Check
	peer, _ := res.cell(FuseOverlayfs)
	for _, c := range res.Cells {
		if len(c.Samples) == 0 || !row.isAbout(c.System) {
			continue
		}
		k := Check{
			Workload: row.Series, Place: res.Place, System: c.System, Max: row.Max,
			Peer: peer.Ratio, PeerLow: row.PeerLow, PeerHigh: row.PeerHigh,
		}
		if row.compare(&k, c, res, results) {
			out = append(out, k)
		}
	}
	return out
}

// compare fills in the outcome for one cell of res, and says whether there was something to compare with.
func (row Row) compare(k *Check, c Cell, res Result, results []Result) bool {
	switch row.By {
	case OfKernel:
		k.Against, k.Ratio, k.MinRatio = KernelOverlay, c.Ratio, c.MinRatio
	case OfSeries:
		k.Against = row.Base
		for _, other := range results {
			if base, ok := other.cell(c.System); ok && other.Series == row.Base && other.Place == res.Place {
				k.Ratio, k.MinRatio = ratio(c.Median, base.Median), ratio(c.Min, base.Min)
			}
		}
	case OfSystem:
		base, _ := res.cell(row.Base)
		k.Against, k.Ratio, k.MinRatio = row.Base, ratio(c.Median, base.Median), ratio(c.Min, base.Min)
	case OverSystem:
		base, ok := res.cell(row.Base)
		k.Against, k.Unit, k.Value = row.Base, res.Unit, c.Median-base.Median
		k.Pass = k.Value <= row.Max
		return ok
	case Absolute:
		k.Unit, k.Value, k.Pass = res.Unit, c.Median, c.Median <= row.Max
		return true
	}
	k.Pass = within(k.Ratio, row.Max)
	return k.Ratio != 0
}

// within compares at the precision of the limits that are demanded.
func within(ratio, limit float64) bool {
	if limit < 0.1 {
		return ratio <= limit
	}
	return math.Round(ratio*100)/100 <= limit
}

// demanded says whether a demand is about a workload on a medium.
func demanded(workload, medium string) bool {
	w, err := find(workload)
	if err != nil {
		return false
	}
	series := []string{w.Name}
	for _, s := range w.Series {
		series = append(series, s.Name)
	}
	return slices.ContainsFunc(Rows(), func(r Row) bool { return r.isOn(medium) && slices.Contains(series, r.Series) })
}

// WriteChecks writes verdicts as lines of text, with a summary.
func WriteChecks(w io.Writer, checks []Check) error {
	passed := 0
	for _, c := range checks {
		verdict := "FAIL"
		if c.Pass {
			verdict = "pass"
			passed++
		}
		value, limit := c.texts()
		line := fmt.Sprintf("%s  %5s of at most %4s  %-22s %-11s %-18s", verdict, value, limit, c.Workload, c.Place, c.System)
		switch {
		case c.Unit == "":
			line += " / " + c.Against
		case c.Against != "":
			line += " - " + c.Against
		}
		if c.MinRatio != 0 {
			line += fmt.Sprintf("  (of minima %.2f)", c.MinRatio)
		}
		if c.PeerHigh != 0 {
			line += fmt.Sprintf("  fuse-overlayfs here %.2f, then %s", c.Peer, span(c.PeerLow, c.PeerHigh))
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " ")); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%d of %d demands are met\n", passed, len(checks))
	return err
}

// texts returns what was reached and what is demanded, for people.
func (c Check) texts() (value, limit string) {
	if c.Unit != "" {
		return c.Unit.format(c.Value), c.Unit.format(c.Max)
	}
	if c.Max < 0.1 {
		return fmt.Sprintf("%.4f", c.Ratio), fmt.Sprintf("%.2f", c.Max)
	}
	return fmt.Sprintf("%.2f", c.Ratio), fmt.Sprintf("%.2f", c.Max)
}

func span(low, high float64) string {
	if low == high {
		return fmt.Sprint(low)
	}
	return fmt.Sprintf("%v-%v", low, high)
}

// storeRows are the demands on the layer store.
func storeRows() []Row {
	return []Row{
		{Series: "store-unpack", System: StorePlyfs, By: OfSystem, Base: StoreTar, Max: 1.2},
		{Series: "store-unpack", System: StoreOverlay2, By: OfSystem, Base: StoreTar, Max: 1.2},
		{Series: "store-diff-100", System: StorePlyfs, By: OfSystem, Base: StoreNaive, Max: 0.01},
		{Series: "store-get-put-64", System: StorePlyfs, By: OfSystem, Base: StoreOverlay2, Max: 2.5},
		// Independent of the size of the image, but for noise.
		{Series: commitLarge, System: StorePlyfs, By: OfSeries, Base: commitSmall, Max: 1.3},
		{Series: perContainer, System: StorePlyfs, By: Absolute, Max: 100 << 10},
	}
}
