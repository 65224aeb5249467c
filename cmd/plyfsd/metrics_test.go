package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"plyfs/internal/control"
	"plyfs/internal/latency"
)

// fakeMount is a mount that says what a test wants.
type fakeMount struct{ m control.Metrics }

func (f fakeMount) Status() control.Status   { return f.m.Status }
func (f fakeMount) Metrics() control.Metrics { return f.m }
func (f fakeMount) Watch() control.Watcher   { return nil }

func (f fakeMount) Settle(context.Context) error { return nil }

// busyMount has a value other than 0 for each metric.
func busyMount(target string) control.Metrics {
	var h latency.Histogram
	for _, d := range []time.Duration{3 * time.Microsecond, 40 * time.Microsecond, time.Minute} {
		h.Observe(d)
	}
	return control.Metrics{
		Status: control.Status{
			Program: "v1", PID: os.Getpid(), Started: time.Unix(1000, 500e6), Target: target, Type: "fuse.plyfs", Data: "noopen",
			Lowers: []string{"/a", "/b"}, Upper: "/u", ResidentBytes: 11,
			Quota: &control.Quota{Bytes: 12, Inodes: 13, LimitBytes: 14, LimitInodes: 15},
		},
		Operations: []control.Operation{
			{Op: "LOOKUP", Requests: 3, Durations: h.Snapshot()},
			{Op: "WRITE", Requests: 5, Errors: map[string]uint64{"space": 2}},
		},
		BytesRead: 21, BytesWritten: 22, CopyUps: 23, CopyUpBytes: 24, CopyUpDurations: h.Snapshot(), UnsyncedFiles: 25,
		IndexHits: 26, IndexMisses: 27, IndexFallbacks: 28, FileHits: 29, FileMisses: 30, DirHits: 31, DirMisses: 32,
		Inodes: 33, OpenFiles: 34, OpenDirs: 35, HeapBytes: 36, Goroutines: 37, CPUSeconds: 3.8, Panics: 39, Readers: 40,
		StaleIDs: 41, Notifications: 42, LoggedErrors: 43, LoggedWarns: 44,
	}
}

// offer serves mounts in a runtime directory of this test.
func offer(t *testing.T, mounts ...control.Metrics) {
	t.Helper()
	base := filepath.Join(t.TempDir(), "run")
	t.Setenv(control.EnvRuntimeDir, base)
	for i, m := range mounts {
		s, err := control.Serve(filepath.Join(base, "mounts"), control.SocketName(os.Getpid(), uint64(i)), fakeMount{m}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// scrape returns the samples of one scrape, values by series.
func scrape(t *testing.T, c prometheus.Collector) map[string]string {
	t.Helper()
	h, err := metricsHandler(c, &net.UnixAddr{Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, metricsPath, nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	series := make(map[string]string)
	for line := range strings.Lines(w.Body.String()) {
		if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
			series[line[:i]] = strings.TrimSpace(line[i:])
		}
	}
	return series
}

func TestScrape(t *testing.T) {
	offer(t, busyMount("/m"))
	got := scrape(t, newCollector(discard()))
	labels := fmt.Sprintf(`container="",image="",mount="/m",pid="%d"`, os.Getpid())
	for series, want := range map[string]string{
		`plyfs_mounts{state="ok"}`:                             "1",
		`plyfs_mounts{state="not answering"}`:                  "0",
		`plyfs_mount_start_time_seconds{` + labels + `}`:       "1000.5",
		`plyfs_copy_ups_total{` + labels + `}`:                 "23",
		`plyfs_copy_up_bytes_total{` + labels + `}`:            "24",
		`plyfs_cpu_seconds_total{` + labels + `}`:              "3.8",
		`plyfs_quota_limit_bytes{` + labels + `}`:              "14",
		`plyfs_copy_up_duration_seconds_count{` + labels + `}`: "3",
		`plyfs_scrape_errors_total`:                            "0",
	} {
		if got[series] != want {
			t.Errorf("%s is %q, want %s", series, got[series], want)
		}
	}
	op := func(name, more string) string {
		return got[name+fmt.Sprintf(`{container="",image="",mount="/m",op="lookup",pid="%d"%s}`, os.Getpid(), more)]
	}
	for le, want := range map[string]string{"1e-06": "0", "4e-06": "1", "6.4e-05": "2", "4.194304": "2", "+Inf": "3"} {
		if v := op("plyfs_request_duration_seconds_bucket", `,le="`+le+`"`); v != want {
			t.Errorf("lookups of at most %s seconds: %q, want %s", le, v, want)
		}
	}
	if v := op("plyfs_request_duration_seconds_sum", ""); v != "60.000043" {
		t.Errorf("lookups took %s in all", v)
	}
	errors := fmt.Sprintf(`plyfs_request_errors_total{class="space",container="",image="",mount="/m",op="write",pid="%d"}`, os.Getpid())
	if got[errors] != "2" {
		t.Errorf("%s is %q", errors, got[errors])
	}
}

// TestEveryMetricIsTold: each description has a value, other than 0, of a mount that has everything; and it is said in the docs.
func TestEveryMetricIsTold(t *testing.T) {
	offer(t, busyMount("/m"))
	c := newCollector(discard())
	got := scrape(t, c)
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	board, err := os.ReadFile("../../docs/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`fqName: "([^"]*)"`)
	var names []string
	for _, d := range c.desc.all {
		n := name.FindStringSubmatch(d.String())[1]
		names = append(names, n)
		told := false
		for series, v := range got {
			told = told || (strings.HasPrefix(series, n+"{") || strings.HasPrefix(series, n+"_count{") || series == n) && v != "0"
		}
		if !told && n != "plyfs_scrape_errors_total" {
			t.Errorf("%s is not told", n)
		}
		if !strings.Contains(string(text), "| `"+n+"` |") {
			t.Errorf("docs/operations.md does not have %s", n)
		}
	}
	var any map[string]any
	if err := json.Unmarshal(board, &any); err != nil {
		t.Errorf("docs/grafana.json: %v", err)
	}
	for _, used := range regexp.MustCompile(`plyfs_[a-z_]+`).FindAllString(string(board)+string(text), -1) {
		base := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(used, "")
		if !slices.Contains(names, used) && !slices.Contains(names, base) {
			t.Errorf("the docs speak of %s, which does not exist", used)
		}
	}
}

func TestConventions(t *testing.T) {
	offer(t, busyMount("/m"))
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(newCollector(discard())); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestNonsense: what one server says does not hide what others do.
func TestNonsense(t *testing.T) {
	odd := busyMount("/\xff\n\"")
	odd.Operations = append(odd.Operations, odd.Operations...)
	for i := range 1000 {
		odd.Operations = append(odd.Operations, control.Operation{Op: fmt.Sprint("X", i), Errors: map[string]uint64{"\xff": 1}})
	}
	offer(t, busyMount("/m"), odd, busyMount("/m"))
	c := newCollector(discard())
	got := scrape(t, c)
	if v := got[`plyfs_mounts{state="ok"}`]; v != "3" {
		t.Errorf("%s mounts", v)
	}
	if v := got["plyfs_scrape_errors_total"]; v != "1" { // two mounts that can't be told from one another
		t.Errorf("%s errors", v)
	}
	requests := 0
	for series := range got {
		if strings.HasPrefix(series, "plyfs_requests_total{") {
			requests++
		}
	}
	if requests != maxOperations+2 {
		t.Errorf("%d series of requests", requests)
	}
}

func TestOnlyThisMachine(t *testing.T) {
	offer(t)
	h, err := metricsHandler(newCollector(discard()), &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]int{
		"127.0.0.1:9755": 200, "localhost:9755": 200, "[::1]:9755": 200, "localhost": 200, "evil.example:9755": 403, "": 403,
		"10.0.0.1": 403, "localhost.evil.example": 403,
	} {
		r := httptest.NewRequest(http.MethodGet, metricsPath, nil)
		r.Host = host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("host %q: %d, want %d", host, w.Code, want)
		}
	}
	for _, tt := range []struct{ method, path string }{{http.MethodPost, metricsPath}, {http.MethodGet, "/"}, {http.MethodGet, "/debug/pprof"}} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tt.method, "http://localhost"+tt.path, nil))
		if w.Code == http.StatusOK {
			t.Errorf("%s %s: %d", tt.method, tt.path, w.Code)
		}
	}
}

// TestMetricsCommand runs the daemon on a socket, scrapes, and ends it.
func TestMetricsCommand(t *testing.T) {
	offer(t, busyMount("/m"))
	path, config := filepath.Join(t.TempDir(), "metrics.sock"), filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	var stderr strings.Builder
	go func() {
		ended <- run(ctx, []string{"plyfs", "metrics", "--config", config, "--address", "unix://" + path}, io.Discard, &stderr)
	}()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	var body string
	for range 1000 {
		resp, err := client.Get("http://plyfs" + metricsPath)
		if err != nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s, %v", resp.Status, err)
		}
		body = string(b)
		break
	}
	if !strings.Contains(body, `plyfs_mounts{state="ok"} 1`) {
		t.Errorf("scraped %.1000s", body)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	client.CloseIdleConnections()
	cancel()
	if code := <-ended; code != exitOK {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket stays: %v", err)
	}
	if code := run(t.Context(), []string{"plyfs", "metrics", "--config", config, "--address", "tcp://0.0.0.0:0"}, io.Discard, &stderr); code != exitUsage {
		t.Error("it listens to all the world")
	}
}
