package plyfs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

// servers knows which process serves which layer: those of this process, and from files those that others started.
// Calls for one layer are serialised by the caller.
type servers struct {
	dir string

	mu  sync.Mutex
	own map[string]*service // guarded by mu
}

// serverRecord is the content of a file.
type serverRecord struct {
	PID     int    `json:"pid"`
	Started uint64 `json:"started"`
}

func openServers(run string) (*servers, error) {
	if !filepath.IsAbs(run) {
		return nil, fmt.Errorf("directory %q is not absolute: %w", run, drivers.ErrInvalid)
	}
	dir := filepath.Join(run, "servers")
	return &servers{dir: dir, own: make(map[string]*service)}, os.MkdirAll(dir, 0o700)
}

// add remembers the server of a layer.
func (s *servers) add(id string, v *service) error {
	s.mu.Lock()
	s.own[id] = v
	s.mu.Unlock()
	b, err := json.Marshal(serverRecord{PID: v.pid, Started: v.started})
	if err != nil {
		return err
	}
	// No id begins with a dot.
	tmp := filepath.Join(s.dir, "."+id)
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(s.dir, id))
}

// wait waits until the server of a layer is gone, and forgets it. A server that nobody wrote down is not waited for:
// its process is known to none, and its mount is gone.
func (s *servers) wait(ctx context.Context, id string) error {
	s.mu.Lock()
	v := s.own[id]
	delete(s.own, id)
	s.mu.Unlock()
	path := filepath.Join(s.dir, id)
	if v != nil {
		select {
		case <-v.over:
		case <-ctx.Done():
			return fmt.Errorf("process %d: %w", v.pid, ctx.Err())
		}
		return removeFile(path)
	}
	rec, err := s.read(id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, errBadRecord): // nothing can be waited for
	case err != nil:
		return err
	default:
		if err := s.waitForOther(ctx, id, rec); err != nil {
			return fmt.Errorf("process %d: %w", rec.PID, err)
		}
	}
	return removeFile(path)
}

// ended takes note that a mount has ended without this process having unmounted it: who did, and is another, waits for the file to
// go, since the server may serve something else now.
func (s *servers) ended(id string, v *service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own[id] == v {
		_ = removeFile(filepath.Join(s.dir, id)) // if it stays, the end of the process is waited for
	}
}

// errBadRecord says that a file is not what add wrote.
var errBadRecord = errors.New("not the record of a server")

// read reads what was written down about the server of a layer.
func (s *servers) read(id string) (rec serverRecord, err error) {
	b, err := os.ReadFile(filepath.Join(s.dir, id))
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return rec, fmt.Errorf("%s: %w: %w", id, err, errBadRecord)
	}
	return rec, nil
}

func removeFile(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// waitForOther waits until a process that may be nobody's child has ended, or its mount has by what the one says that started it.
func (s *servers) waitForOther(ctx context.Context, id string, rec serverRecord) error {
	fd, err := unix.PidfdOpen(rec.PID, 0)
	if err != nil {
		return ignoreGone(err)
	}
	defer unix.Close(fd)
	// The descriptor is of whoever had the number when it was opened.
	if started, err := startTime(rec.PID); err != nil || started != rec.Started {
		return nil
	}
	const slice = 20 * time.Millisecond
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(slice.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
		if now, err := s.read(id); errors.Is(err, fs.ErrNotExist) || err == nil && now != rec {
			return nil
		}
	}
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// startTimeField is the index of the start time in /proc/PID/stat, counted behind the program's name (proc(5), field
// 22).
const startTimeField = 19

// startTime is when a process was started, in clock ticks since boot.
func startTime(pid int) (uint64, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	// The name is in parentheses, and may hold any.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) <= startTimeField {
		return 0, fmt.Errorf("%s has %d fields: %w", path, len(fields), unix.EINVAL)
	}
	return strconv.ParseUint(string(fields[startTimeField]), 10, 64)
}
