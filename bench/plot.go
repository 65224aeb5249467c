package bench

import (
	"fmt"
	"html"
	"io"
	"math"
	"slices"
	"strings"
)

// Geometry of the plot in pixels.
const (
	plotLeft      = 260
	plotWidth     = 760
	plotRight     = 40
	plotTop       = 70
	groupGap      = 10
	lineHeight    = 14
	plotFontSize  = 11
	headFontSize  = 15
	decadeMinimum = 0.1
)

// plotColours are told apart also by those who see few colours; systems beyond them repeat.
func plotColours() []string {
	return []string{"#555555", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00"}
}

// WriteSVG draws the ratios to the base of each result on a logarithmic scale: for each result a group of bars, one a
// system, with the range of its samples as a thin line and what is demanded of plyfs as a tick. The document refers to
// nothing outside of itself.
func (r *Report) WriteSVG(w io.Writer) error {
	p := r.newPlot()
	p.frame(r)
	for _, res := range p.results {
		p.group(res)
	}
	p.printf("</svg>\n")
	_, err := io.WriteString(w, p.b.String())
	return err
}

// WriteHTML writes the plot and the numbers as one page.
func (r *Report) WriteHTML(w io.Writer) error {
	var b strings.Builder
	b.WriteString("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>plyfs bench</title>\n<style>" +
		"body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}td,th{padding:2px 10px;text-align:right;" +
		"border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}.pass{color:#007a4d}.fail{color:#c00000}" +
		"</style></head><body>\n")
	if err := r.WriteSVG(&b); err != nil {
		return err
	}
	b.WriteString("<h2>Medians (minima) and ratios</h2>\n<table><tr><th>workload</th><th>on</th>")
	for _, s := range r.Systems {
		fmt.Fprintf(&b, "<th>%s<br><small>%s</small></th>", html.EscapeString(s.Name), html.EscapeString(s.Version))
	}
	b.WriteString("</tr>\n")
	for _, res := range r.Results {
		fmt.Fprintf(&b, "<tr><td title=\"%s\">%s</td><td>%s</td>", html.EscapeString(res.Doc), html.EscapeString(res.Series), html.EscapeString(res.Place))
		for _, c := range res.Cells {
			fmt.Fprintf(&b, "<td title=\"%s\">%s</td>", html.EscapeString(c.Error+c.Skipped), html.EscapeString(c.text(res.Unit)))
		}
		b.WriteString("</tr>\n")
	}
	b.WriteString("</table>\n")
	r.writeHTMLChecks(&b)
	b.WriteString("</body></html>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Report) writeHTMLChecks(b *strings.Builder) {
	if len(r.Checks) == 0 {
		return
	}
	b.WriteString("<h2>Demands</h2>\n<table><tr><th>workload</th><th>on</th><th>system</th><th>against</th><th>is</th>" +
		"<th>at most</th><th></th></tr>\n")
	for _, c := range r.Checks {
		verdict := "fail"
		if c.Pass {
			verdict = "pass"
		}
		value, limit := c.texts()
		fmt.Fprintf(b, "<tr><td>%s</td><td>%s</td><td>%s</td><td>%s</td><td>%s</td><td>%s</td><td class=\"%s\">%s</td></tr>\n",
			html.EscapeString(c.Workload), html.EscapeString(c.Place), html.EscapeString(c.System), c.Against, value, limit, verdict, verdict)
	}
	b.WriteString("</table>\n")
}

// plot is a drawing in progress.
type plot struct {
	b       strings.Builder
	results []Result // those that have ratios
	colour  map[string]string
	lo, hi  float64 // bounds of the axis, powers of ten
	y       int     // top of the next group
	height  int
}

// newPlot chooses the results that can be drawn and the axis.
func (r *Report) newPlot() *plot {
	p := &plot{colour: make(map[string]string), lo: decadeMinimum, hi: 10, y: plotTop}
	colours := plotColours()
	for i, s := range r.Systems {
		p.colour[s.Name] = colours[i%len(colours)]
	}
	p.height = plotTop + 2*lineHeight
	for _, res := range r.Results {
		if _, ok := res.base(); !ok {
			continue
		}
		p.results = append(p.results, res)
		p.height += groupGap
		for _, c := range res.Cells {
			if len(c.Samples) == 0 {
				continue
			}
			p.height += lineHeight
			for c.Ratio > p.hi {
				p.hi *= 10
			}
			for c.Ratio < p.lo && c.Ratio > 0 {
				p.lo /= 10
			}
		}
	}
	return p
}

func (p *plot) printf(format string, args ...any) { fmt.Fprintf(&p.b, format, args...) }

// x is the position of a ratio.
func (p *plot) x(ratio float64) float64 {
	at := math.Log(ratio/p.lo) / math.Log(p.hi/p.lo)
	return plotLeft + plotWidth*min(1, max(0, at))
}

// frame draws heading, legend and grid.
func (p *plot) frame(r *Report) {
	width := plotLeft + plotWidth + plotRight
	p.printf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"%d\">\n",
		width, p.height, width, p.height, plotFontSize)
	p.printf("<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n", width, p.height)
	p.printf("<text x=\"10\" y=\"20\" font-size=\"%d\">%s (%s, logarithmic; less is better)</text>\n",
		headFontSize, p.subject(), p.medians(r.Samples))
	p.printf("<text x=\"10\" y=\"38\" fill=\"#555555\">Linux %s, %d CPUs, %s%s</text>\n",
		html.EscapeString(r.Host.Kernel), r.Host.CPUs, r.Started.Format("2006-01-02"), scaleNote(r.Scale))
	x := plotLeft
	for _, s := range r.Systems {
		p.printf("<rect x=\"%d\" y=\"44\" width=\"10\" height=\"10\" fill=\"%s\"/><text x=\"%d\" y=\"53\">%s</text>\n",
			x, p.colour[s.Name], x+14, html.EscapeString(s.Name))
		x += 40 + 7*len(s.Name)
	}
	bottom := p.height - lineHeight
	for decade := p.lo; decade <= p.hi*1.001; decade *= 10 {
		for _, m := range []float64{1, 2, 5} {
			v := decade * m
			if v > p.hi*1.001 {
				break
			}
			stroke := "#e5e5e5"
			if math.Abs(v-1) < 1e-9 {
				stroke = "#000000"
			}
			p.printf("<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"%s\"/><text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.4g</text>\n",
				p.x(v), plotTop-4, p.x(v), bottom-4, stroke, p.x(v), bottom+8, v)
		}
	}
}

func scaleNote(scale int) string {
	if scale == 1 {
		return ""
	}
	return fmt.Sprintf(", sizes divided by %d", scale)
}

// subject says what the bars are.
func (p *plot) subject() string {
	for _, res := range p.results {
		if base, _ := res.base(); base.System != KernelOverlay {
			return "Divided by the system whose bar is at 1"
		}
	}
	return "Time divided by the kernel's overlayfs"
}

// medians says of how many samples medians are: expensive workloads have fewer than were asked for.
func (p *plot) medians(samples int) string {
	for _, res := range p.results {
		if slices.ContainsFunc(res.Cells, func(c Cell) bool { return len(c.Samples) > 0 && len(c.Samples) < samples }) {
			return fmt.Sprintf("median of at most %d", samples)
		}
	}
	return fmt.Sprintf("median of %d", samples)
}

// group draws the bars of one result.
func (p *plot) group(res Result) {
	p.y += groupGap
	top := p.y
	p.printf("<text x=\"%d\" y=\"%d\" text-anchor=\"end\"><title>%s</title>%s, %s</text>\n",
		plotLeft-8, top+plotFontSize, html.EscapeString(res.Doc), html.EscapeString(res.Series), html.EscapeString(res.Place))
	base, _ := res.base()
	for _, c := range res.Cells {
		if len(c.Samples) == 0 {
			continue
		}
		p.bar(c, base.Median, res.Unit)
		p.y += lineHeight
	}
	for _, row := range Rows() {
		if row.Series != res.Series || row.By != OfKernel && (row.By != OfSystem || row.Base != base.System) || !row.isOn(res.Place) {
			continue
		}
		who := row.System
		if who == "" {
			who = Plyfs + " " + string(row.Data)
		}
		p.printf("<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"#c00000\" stroke-width=\"2\"><title>demanded of %s: at most %v</title></line>\n",
			p.x(row.Max), top, p.x(row.Max), p.y, html.EscapeString(strings.TrimSpace(who)), row.Max)
	}
}

// bar draws one system: from the base's 1 to its ratio.
func (p *plot) bar(c Cell, base float64, u Unit) {
	from, to := p.x(1), p.x(c.Ratio)
	p.printf("<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"><title>%s: %s, ratio %.2f, median of %d</title></rect>\n",
		min(from, to), p.y+2, max(2, math.Abs(to-from)), lineHeight-4, p.colour[c.System],
		html.EscapeString(c.System), html.EscapeString(u.format(c.Median)), c.Ratio, len(c.Samples))
	worst := c.Samples[0]
	for _, s := range c.Samples {
		worst = max(worst, s)
	}
	mid := p.y + lineHeight/2
	p.printf("<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"#000000\"/>\n", p.x(c.Min/base), mid, p.x(worst/base), mid)
	p.printf("<text x=\"%.1f\" y=\"%d\">%.2f</text>\n", max(from, to, p.x(worst/base))+4, mid+4, c.Ratio)
}
