package main

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"plyfs/internal/control"
	"plyfs/internal/latency"
	"plyfs/internal/version"
)

const (
	// answerWithin is how long all mounts together may take: less than the ten seconds that Prometheus waits.
	answerWithin = 4 * time.Second
	// maxOperations is more than there are opcodes: what another user's server says is believed up to there.
	maxOperations = 128
)

// collector asks all mounts for their metrics whenever it is collected.
type collector struct {
	log    *slog.Logger
	desc   descriptions
	errors atomic.Uint64
}

func newCollector(log *slog.Logger) *collector { return &collector{log: log, desc: newDescriptions()} }

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.desc.all {
		ch <- d
	}
}

// answer is what one socket said.
type answer struct {
	socket  control.Socket
	metrics control.Metrics
	err     error
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	began := time.Now()
	e := &emitter{ch: ch, collector: c}
	silent, ok := 0, 0
	owners := control.NewOwners()
	seen := make(map[string]bool)
	for _, a := range c.ask() {
		switch {
		case errors.Is(a.err, control.ErrGone):
			continue
		case a.err != nil:
			c.errors.Add(1)
			c.log.Warn("a mount does not answer", "socket", a.socket.Path, "error", a.err)
			silent++
			continue
		}
		ok++
		owner := owners.Find(a.metrics.Target, a.metrics.Upper, a.socket.UID)
		e.labels = []string{
			clean(a.metrics.Target), clean(owner.Container), clean(owner.Image), strconv.Itoa(a.metrics.PID),
		}
		if key := strings.Join(e.labels, "\x00"); seen[key] {
			c.errors.Add(1)
			continue // one series can't have two values
		} else { //nolint:revive // key is needed here
			seen[key] = true
		}
		e.mount(&a.metrics, owner)
	}
	e.labels = nil
	e.gauge(c.desc.mounts, float64(ok), string(control.StateOK))
	e.gauge(c.desc.mounts, float64(silent), string(control.StateSilent))
	e.counter(c.desc.scrapeErrors, c.errors.Load())
	e.gauge(c.desc.scrapeDuration, time.Since(began).Seconds())
	e.gauge(c.desc.buildInfo, 1, version.Read().Version)
}

// ask asks all servers at once.
func (c *collector) ask() []answer {
	sockets, err := control.List(control.All)
	if err != nil {
		c.errors.Add(1)
		c.log.Error("find mounts", "error", err)
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
	defer cancel()
	answers := make([]answer, len(sockets))
	control.Each(sockets, func(i int, s control.Socket) {
		m, err := s.Metrics(ctx)
		answers[i] = answer{s, m, err}
	})
	return answers
}

// clean makes a label of text that may be anything.
func clean(s string) string { return strings.ToValidUTF8(s, "?") }

// emitter sends the metrics of one mount.
type emitter struct {
	*collector
	ch     chan<- prometheus.Metric
	labels []string
}

func (e *emitter) send(m prometheus.Metric, err error) {
	if err != nil {
		e.errors.Add(1)
		e.log.Warn("a metric can't be told", "error", err)
		return
	}
	e.ch <- m
}

// values are those of the labels of the mount, and more.
func (e *emitter) values(more []string) []string {
	return append(append([]string(nil), e.labels...), more...)
}

func (e *emitter) counter(d *prometheus.Desc, v uint64, labels ...string) {
	e.send(prometheus.NewConstMetric(d, prometheus.CounterValue, float64(v), e.values(labels)...))
}

func (e *emitter) gauge(d *prometheus.Desc, v float64, labels ...string) {
	e.send(prometheus.NewConstMetric(d, prometheus.GaugeValue, v, e.values(labels)...))
}

// histogram tells every second class only: a factor of four between bounds says enough, in half of the series.
func (e *emitter) histogram(d *prometheus.Desc, s *latency.Snapshot, labels ...string) {
	buckets := make(map[float64]uint64)
	var n uint64
	for i := range latency.Classes {
		n += s.Counts[i]
		if i%2 == 0 {
			buckets[latency.Bound(i).Seconds()] = n
		}
	}
	sum := time.Duration(s.SumNanoseconds).Seconds()
	e.send(prometheus.NewConstHistogram(d, s.Count(), sum, buckets, e.values(labels)...))
}

// mount sends all of a mount.
func (e *emitter) mount(m *control.Metrics, owner control.Owner) {
	d := &e.desc
	e.gauge(d.info, 1, clean(owner.Engine), clean(m.Type), clean(m.Data), clean(m.Program))
	e.gauge(d.started, float64(m.Started.UnixMilli())/1000)
	e.gauge(d.lowers, float64(len(m.Lowers)))
	e.operations(m.Operations)
	e.counter(d.readBytes, m.BytesRead)
	e.counter(d.writtenBytes, m.BytesWritten)

	e.counter(d.copyUps, m.CopyUps)
	e.counter(d.copyUpBytes, m.CopyUpBytes)
	e.histogram(d.copyUpDuration, &m.CopyUpDurations)
	e.gauge(d.unsynced, float64(m.UnsyncedFiles))

	e.counter(d.index, m.IndexHits, "hit")
	e.counter(d.index, m.IndexMisses, "miss")
	e.counter(d.index, m.IndexFallbacks, "fallback")
	e.counter(d.cache, m.FileHits, "file", "hit")
	e.counter(d.cache, m.FileMisses, "file", "miss")
	e.counter(d.cache, m.DirHits, "directory", "hit")
	e.counter(d.cache, m.DirMisses, "directory", "miss")
	e.gauge(d.open, float64(m.OpenFiles), "file")
	e.gauge(d.open, float64(m.OpenDirs), "directory")
	e.gauge(d.inodes, float64(m.Inodes))

	e.gauge(d.resident, float64(m.ResidentBytes))
	e.gauge(d.heap, float64(m.HeapBytes))
	e.gauge(d.goroutines, float64(m.Goroutines))
	e.send(prometheus.NewConstMetric(d.cpu, prometheus.CounterValue, m.CPUSeconds, e.labels...))

	e.counter(d.panics, m.Panics)
	e.counter(d.logged, m.LoggedErrors, "error")
	e.counter(d.logged, m.LoggedWarns, "warning")
	e.counter(d.readers, m.Readers)
	e.counter(d.stale, m.StaleIDs)
	e.counter(d.notifications, m.Notifications)
	if q := m.Quota; q != nil {
		e.gauge(d.quotaBytes, float64(q.Bytes))
		e.gauge(d.quotaLimitBytes, float64(q.LimitBytes))
		e.gauge(d.quotaInodes, float64(q.Inodes))
		e.gauge(d.quotaLimitInodes, float64(q.LimitInodes))
	}
}

func (e *emitter) operations(list []control.Operation) {
	seen := make(map[string]bool)
	for i := range list {
		o := &list[i]
		op := strings.ToLower(clean(o.Op))
		if seen[op] || len(seen) >= maxOperations {
			continue
		}
		seen[op] = true
		e.counter(e.desc.requests, o.Requests, op)
		e.histogram(e.desc.duration, &o.Durations, op)
		if len(o.Errors) > maxOperations {
			continue
		}
		for class, n := range o.Errors {
			if class == clean(class) {
				e.counter(e.desc.requestErrors, n, op, class)
			}
		}
	}
}
