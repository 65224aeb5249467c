package bench

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// Row is one demand on the speed of plyfs: the time of a workload divided by that of the kernel's overlayfs.
type Row struct {
	Workload string
	// Place is where layers and upper are; empty for anywhere.
	Place string
	// Data is the data mode that the demand is about; empty for each.
	Data DataMode
	// Max is the largest ratio that will do.
	Max float64
	// PeerLow and PeerHigh are the ratios that fuse-overlayfs 1.17 had on the machine where the demands were set.
	PeerLow, PeerHigh float64
}

// PeerMax is the largest part of fuse-overlayfs's time that plyfs may take in any workload.
const PeerMax = 0.8

// Rows returns the demands.
func Rows() []Row {
	const tmpfs, ext4 = tmpfsMedium, ext4Medium
	var rows []Row
	for _, layers := range []int{1, 32, 100} {
		for _, mode := range []string{"stat", "readdir"} {
			rows = append(rows, Row{Workload: fmt.Sprintf("walk-warm-%s-%d", mode, layers), Max: 1.0, PeerLow: 0.7, PeerHigh: 1.0})
		}
	}
	rows = append(rows,
		Row{Workload: "absent-warm-32", Max: 1.0, PeerLow: 0.7, PeerHigh: 1.0},
		Row{Workload: "walk-first-stat-32", Place: tmpfs, Max: 1.5, PeerLow: 3.6, PeerHigh: 3.6},
		Row{Workload: "open-hot", Data: NoOpen, Max: 1.0, PeerLow: 2.9, PeerHigh: 2.9},
		Row{Workload: "open-first", Place: tmpfs, Max: 2.0, PeerLow: 3.1, PeerHigh: 4.5},
	)
	for _, kind := range []string{"seq", "rand", "mmap"} {
		for _, phase := range []string{"first", "warm"} {
			rows = append(rows, Row{Workload: "read-" + kind + "-" + phase, Data: Passthrough, Max: 1.2, PeerLow: 1.1, PeerHigh: 3})
		}
	}
	return append(rows,
		Row{Workload: "write-seq", Place: tmpfs, Data: Passthrough, Max: 1.2, PeerLow: 3.4, PeerHigh: 3.4},
		Row{Workload: "write-rand", Place: tmpfs, Data: Passthrough, Max: 1.5, PeerLow: 16, PeerHigh: 16},
		Row{Workload: "create", Place: tmpfs, Max: 3.2, PeerLow: 3.9, PeerHigh: 3.9},
		Row{Workload: "untar", Place: tmpfs, Max: 4.5, PeerLow: 6, PeerHigh: 8},
		Row{Workload: "unlink-upper", Place: tmpfs, Max: 3, PeerLow: 5.9, PeerHigh: 5.9},
		Row{Workload: "unlink-lower", Place: tmpfs, Max: 4, PeerLow: 17, PeerHigh: 17},
		Row{Workload: "mkdir-rmdir", Place: tmpfs, Max: 4, PeerLow: 5.6, PeerHigh: 5.6},
		Row{Workload: "rename-lower", Place: tmpfs, Max: 3, PeerLow: 5.7, PeerHigh: 5.7},
		Row{Workload: "append-lower", Place: tmpfs, Max: 3, PeerLow: 4.1, PeerHigh: 4.1},
		Row{Workload: "append-lower", Place: ext4, Max: 0.6, PeerLow: 0.85, PeerHigh: 0.85},
		Row{Workload: "chown-lower", Place: tmpfs, Max: 2.5, PeerLow: 7.8, PeerHigh: 7.8},
		Row{Workload: "chown-lower", Place: ext4, Max: 0.2, PeerLow: 0.3, PeerHigh: 0.3},
		Row{Workload: "parallel-open", Place: tmpfs, Max: 1.2, PeerLow: 3.4, PeerHigh: 3.4},
		Row{Workload: "parallel-create", Place: tmpfs, Max: 3, PeerLow: 4.2, PeerHigh: 4.2},
	)
}

// Check is the verdict on one demand for one system.
type Check struct {
	// Against is the system that the times were divided by.
	Against  string  `json:"against"`
	Workload string  `json:"workload"`
	Place    string  `json:"place"`
	System   string  `json:"system"`
	Ratio    float64 `json:"ratio"`
	MinRatio float64 `json:"min_ratio,omitempty"`
	Max      float64 `json:"max"`
	// Pass compares the ratio of the medians, rounded to two decimals.
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
			if res.Series == row.Workload && (row.Place == "" || row.Place == res.Place) {
				out = append(out, row.judge(res)...)
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

// judge compares the cells of plyfs that the demand is about.
func (row Row) judge(res Result) []Check {
	var out []Check
	peer, _ := res.cell(FuseOverlayfs)
	for _, c := range res.Cells {
		mode, ok := strings.CutPrefix(c.System, Plyfs+"-")
		if !ok || c.Ratio == 0 || row.Data != "" && mode != string(row.Data) {
			continue
		}
		out = append(out, Check{
			Against: KernelOverlay, Workload: row.Workload, Place: res.Place, System: c.System,
			Ratio: c.Ratio, MinRatio: c.MinRatio, Max: row.Max, Pass: within(c.Ratio, row.Max),
			Peer: peer.Ratio, PeerLow: row.PeerLow, PeerHigh: row.PeerHigh,
		})
	}
	return out
}

func within(ratio, limit float64) bool { return math.Round(ratio*100)/100 <= limit }

// demanded says whether a demand is about a workload on a medium.
func demanded(workload, medium string) bool {
	return slices.ContainsFunc(Rows(), func(r Row) bool {
		return r.Workload == workload && (r.Place == "" || r.Place == medium)
	})
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
		line := fmt.Sprintf("%s  %5.2f of at most %4.2f  %-22s %-11s %-18s / %s", verdict, c.Ratio, c.Max, c.Workload, c.Place, c.System, c.Against)
		if c.MinRatio != 0 {
			line += fmt.Sprintf("  (of minima %.2f)", c.MinRatio)
		}
		if c.PeerHigh != 0 {
			line += fmt.Sprintf("  fuse-overlayfs here %.2f, then %s", c.Peer, span(c.PeerLow, c.PeerHigh))
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%d of %d demands are met\n", passed, len(checks))
	return err
}

func span(low, high float64) string {
	if low == high {
		return fmt.Sprint(low)
	}
	return fmt.Sprintf("%v-%v", low, high)
}
