package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"
)

const (
	memoryKnown   = "memory-known"
	memoryDropped = "memory-dropped"
)

// memoryWorkloads measure the resident memory of the server.
func memoryWorkloads() []Workload {
	return []Workload{{
		Name: "memory", Doc: "resident memory of the server when 1,000,000 inodes are known, and after drop_caches",
		Fixture: millionFixture(), MaxSamples: 1, On: Servers, Run: measureMemory,
		Series: []Series{{memoryKnown, Bytes}, {memoryDropped, Bytes}},
	}}
}

func measureMemory(ctx context.Context, e *Env) error {
	if err := measureWalk(e, StatEach, 0); err != nil {
		return err
	}
	if err := expectKnown(e); err != nil {
		return err
	}
	known, err := residentBytes(e.ServerPID)
	if err != nil {
		return err
	}
	e.Report(memoryKnown, float64(known))
	if err := e.caches.drop(); err != nil {
		return err
	}
	dropped := known
	if e.caches == MayDropCaches {
		dropped, err = settledResident(ctx, e.ServerPID)
	}
	if err != nil {
		return err
	}
	e.Report(memoryDropped, float64(dropped))
	return nil
}

// expectKnown verifies that the kernel, and so the server, still knows all inodes: under pressure of memory, or when
// someone else drops the caches, it forgets them. Where slabinfo does not say how many there are, it is taken on trust.
func expectKnown(e *Env) error {
	known, ok := fuseInodes()
	for try := 0; ok && known < e.Tree.Files; try++ {
		if try == 3 {
			return fmt.Errorf("verify: the kernel knows %d inodes of %d; something makes it forget them", known, e.Tree.Files)
		}
		if _, err := walk(e.Root, StatEach); err != nil {
			return err
		}
		known, ok = fuseInodes()
	}
	return nil
}

// fuseInodes returns the number of FUSE inodes in memory.
func fuseInodes() (n int, ok bool) {
	info, err := os.ReadFile("/proc/slabinfo")
	if err != nil {
		return 0, false
	}
	for line := range bytes.Lines(info) {
		f := bytes.Fields(line)
		if len(f) > 1 && string(f[0]) == "fuse_inode" {
			n, err := strconv.Atoi(string(f[1]))
			return n, err == nil
		}
	}
	return 0, false
}

// residentBytes reads VmRSS of a process.
func residentBytes(pid int) (int64, error) { return statusBytes(pid, "VmRSS") }

// anonymousBytes reads RssAnon of a process: the memory that it shares with no file and no other process.
func anonymousBytes(pid int) (int64, error) { return statusBytes(pid, "RssAnon") }

// statusBytes reads a field of /proc/PID/status that is in kB.
func statusBytes(pid int, field string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(status) {
		rest, ok := bytes.CutPrefix(line, []byte(field+":"))
		if !ok {
			continue
		}
		kib, err := strconv.ParseInt(string(bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(rest), []byte("kB")))), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s of process %d: %w", field, pid, err)
		}
		return kib << 10, nil
	}
	return 0, fmt.Errorf("process %d has no %s", pid, field)
}

const (
	settleQuiet = 10 * time.Second
	settleLimit = time.Minute
)

// settledResident waits until the memory of a process has not shrunk for ten seconds, at most a minute, and returns the
// least that it saw: forgetting a million inodes takes the server seconds, and giving pages back takes a runtime longer.
func settledResident(ctx context.Context, pid int) (int64, error) {
	low, err := residentBytes(pid)
	if err != nil {
		return 0, err
	}
	since := time.Now()
	deadline := since.Add(settleLimit)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for time.Now().Before(deadline) && time.Since(since) < settleQuiet {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-tick.C:
		}
		now, err := residentBytes(pid)
		if err != nil {
			return 0, err
		}
		if now < low-low/100 {
			low, since = now, time.Now()
		}
	}
	return low, nil
}
