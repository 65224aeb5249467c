package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"plyfs/layerdb/image"
)

// redrawEvery is how often the line of progress is drawn.
const redrawEvery = 100 * time.Millisecond

// progressLine shows on a terminal how far the layers of an image are, in one line that is drawn over and over.
type progressLine struct {
	f *os.File

	mu     sync.Mutex
	layers map[string]image.Progress // guarded by mu
	drawn  time.Time                 // guarded by mu
	start  time.Time
}

// storeProgress returns what reports to stderr if it is a terminal, and what clears the line at the end.
func (s *session) storeProgress() (report image.Report, end func()) {
	if s.json() || s.c.Bool("quiet") || !isTerminal(os.Stderr) {
		return nil, func() {}
	}
	p := &progressLine{f: os.Stderr, layers: make(map[string]image.Progress), start: time.Now()}
	return p.report, p.end
}

func (p *progressLine) report(now image.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.layers[now.Layer+string(now.Phase)] = now
	if t := time.Now(); t.Sub(p.drawn) >= redrawEvery {
		p.drawn = t
		fmt.Fprintf(p.f, "\r\x1b[K%s", p.lineLocked())
	}
}

// barWidth is the width of the bar in characters.
const barWidth = 24

// lineLocked is the line: the phase that is furthest behind, a bar over the bytes of all layers in it, and the rate.
//
// Precondition: p.mu is held.
func (p *progressLine) lineLocked() string {
	for _, phase := range []image.Phase{image.PhaseDownload, image.PhasePack, image.PhaseUnpack, image.PhaseUpload} {
		var done, total int64
		n, ready := 0, 0
		for _, l := range p.layers {
			if l.Phase != phase {
				continue
			}
			n++
			done += l.Done
			total += max(l.Total, l.Done)
			if l.Done >= l.Total {
				ready++
			}
		}
		if n == 0 || ready == n && phase != image.PhaseUpload {
			continue
		}
		full := barWidth
		if total > 0 {
			full = int(float64(done) / float64(total) * barWidth)
		}
		rate := float64(done) / max(time.Since(p.start).Seconds(), 0.001)
		return fmt.Sprintf("%s [%s%s] %d/%d layers, %s of %s, %s/s", phase, strings.Repeat("=", full),
			strings.Repeat(" ", barWidth-full), ready, n, byteSize(done), byteSize(total), byteSize(int64(rate)))
	}
	return "finishing"
}

func (p *progressLine) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprint(p.f, "\r\x1b[K")
}
