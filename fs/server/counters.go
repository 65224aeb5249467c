package server

import (
	"context"
	"log/slog"
	"maps"
	"reflect"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// logCounters writes one record of all counters: of the union, of the requests by kind, of the process.
func (s *server) logCounters() {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	requests := s.fs.Counters()
	var kinds []any
	for _, k := range slices.Sorted(maps.Keys(requests)) {
		kinds = append(kinds, slog.Uint64(k, requests[k]))
	}
	s.log.Info("counters",
		slog.Group("union", structAttrs(s.union.Stats())...),
		slog.Int("inodes", s.fs.Nodes()),
		slog.Group("requests", kinds...),
		slog.Group("process", slog.Uint64("heap", m.HeapAlloc), slog.Uint64("sys", m.Sys),
			slog.Int("goroutines", runtime.NumGoroutine())),
	)
}

// structAttrs lists the number fields of a struct under their names in snake case.
func structAttrs(v any) []any {
	rv := reflect.ValueOf(v)
	var out []any
	for i := range rv.NumField() {
		if f := rv.Field(i); f.CanUint() {
			out = append(out, slog.Uint64(snake(rv.Type().Field(i).Name), f.Uint()))
		}
	}
	return out
}

// snake turns CopyUpBytes into copy_up_bytes.
func snake(name string) string {
	var b strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// usage is what this process takes up.
type usage struct {
	heap       uint64 // live and dead objects, in bytes
	goroutines uint64
	cpu        time.Duration
}

// processUsage measures this process.
func processUsage() (u usage) {
	// Unlike runtime.ReadMemStats it stops nothing.
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/sched/goroutines:goroutines"}}
	metrics.Read(samples)
	u.heap, u.goroutines = samples[0].Value.Uint64(), samples[1].Value.Uint64()
	var r unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &r) == nil {
		u.cpu = time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	return u
}

// tally counts what is logged.
type tally struct{ errors, warnings atomic.Uint64 }

// handler returns one that counts, and passes on to h.
func (t *tally) handler(h slog.Handler) slog.Handler { return tallying{h, t} }

type tallying struct {
	slog.Handler
	tally *tally
}

// Handle implements slog.Handler.
func (h tallying) Handle(ctx context.Context, r slog.Record) error {
	switch {
	case r.Level >= slog.LevelError:
		h.tally.errors.Add(1)
	case r.Level >= slog.LevelWarn:
		h.tally.warnings.Add(1)
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h tallying) WithAttrs(attrs []slog.Attr) slog.Handler {
	return tallying{h.Handler.WithAttrs(attrs), h.tally}
}

// WithGroup implements slog.Handler.
func (h tallying) WithGroup(name string) slog.Handler {
	return tallying{h.Handler.WithGroup(name), h.tally}
}
