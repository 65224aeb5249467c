package main

import (
	"log/slog"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"unicode"
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
