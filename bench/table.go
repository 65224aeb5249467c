package bench

import (
	"fmt"
	"io"
	"strings"
	"time"
)

const (
	nameWidth  = 24
	placeWidth = 11
	cellWidth  = 36
)

// Table writes results as lines of text, one at a time, so that a long run shows what it has.
type Table struct {
	w       io.Writer
	systems []System
	started bool
}

// NewTable returns a table that writes to w, with a column for each system.
func NewTable(w io.Writer, systems []System) *Table { return &Table{w: w, systems: systems} }

// Add writes one result, after the heading if it is the first. Errors of the writer are not reported: the table is for
// a terminal, the report has everything.
func (t *Table) Add(r Result) {
	if !t.started {
		t.started = true
		t.heading()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-*s %-*s", nameWidth, r.Series, placeWidth, r.Place)
	var notes []string
	for _, c := range r.Cells {
		fmt.Fprintf(&b, " %*s", cellWidth, c.text(r.Unit))
		if c.Error != "" {
			notes = append(notes, fmt.Sprintf("  %s: %s", c.System, c.Error))
		} else if c.Skipped != "" {
			notes = append(notes, fmt.Sprintf("  %s: skipped: %s", c.System, c.Skipped))
		}
	}
	fmt.Fprintln(t.w, strings.TrimRight(b.String(), " "))
	for _, n := range notes {
		fmt.Fprintln(t.w, n)
	}
}

func (t *Table) heading() {
	var names, what strings.Builder
	fmt.Fprintf(&names, "%-*s %-*s", nameWidth, "", placeWidth, "")
	fmt.Fprintf(&what, "%-*s %-*s", nameWidth, "workload", placeWidth, "on")
	for _, s := range t.systems {
		fmt.Fprintf(&names, " %*s", cellWidth, s.Name)
		fmt.Fprintf(&what, " %*s", cellWidth, "median (min)  ratio (of min)")
	}
	fmt.Fprintln(t.w, names.String())
	fmt.Fprintln(t.w, what.String())
}

// text is the content of a cell: median, minimum, and the ratios of both to the kernel's overlayfs.
func (c Cell) text(u Unit) string {
	switch {
	case len(c.Samples) == 0 && c.Error != "":
		return "failed"
	case len(c.Samples) == 0:
		return "-"
	}
	s := fmt.Sprintf("%s (%s)", u.format(c.Median), u.format(c.Min))
	if c.Ratio != 0 {
		return fmt.Sprintf("%s %6.2f (%.2f)", s, c.Ratio, c.MinRatio)
	}
	return s + "      -       "
}

// format writes a value with three significant digits and a unit that fits.
func (u Unit) format(v float64) string {
	if v < 0 {
		return "-" + u.format(-v)
	}
	if u == Bytes {
		switch {
		case v < 1<<10:
			return digits(v) + " B"
		case v < 1<<20:
			return digits(v/(1<<10)) + " KiB"
		}
		return fmt.Sprintf("%.1f MiB", v/(1<<20))
	}
	switch d := time.Duration(v); {
	case d >= time.Second:
		return fmt.Sprintf("%.3g s", d.Seconds())
	case d >= time.Millisecond:
		return fmt.Sprintf("%s ms", digits(v/1e6))
	default:
		return fmt.Sprintf("%s us", digits(v/1e3))
	}
}

// digits writes a number below 1000 with three significant digits and no exponent.
func digits(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
