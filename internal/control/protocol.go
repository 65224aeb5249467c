package control

import (
	"time"

	"plyfs/internal/latency"
)

// Version is the version of the protocol.
const Version = 1

// The requests.
const (
	requestStatus  = "status"
	requestMetrics = "metrics"
	requestWatch   = "watch"
	requestSettle  = "settle"
)

// Header is in every answer.
type Header struct {
	Version int `json:"version"`
	// Error says why there is nothing else.
	Error string `json:"error,omitempty"`
}

// Status says what a mount is.
type Status struct {
	// Program is the version of plyfs that serves.
	Program string `json:"program"`
	// PID is the server, in its own pid namespace.
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`

	// Target is where it is mounted, in the server's mount namespace; /dev/fd/N if somebody else mounted.
	Target string `json:"target"`
	// Type is the file system type, such as fuse.plyfs.
	Type string `json:"type"`
	// Device is the device number of its files as in mountinfo, such as 0:57; "" if unknown.
	Device string `json:"device,omitempty"`
	// Lowers are the lower directories, topmost first; Upper is "" for a mount without.
	Lowers   []string `json:"lowers"`
	Upper    string   `json:"upper,omitempty"`
	ReadOnly bool     `json:"read_only"`
	// Data is the data mode in effect.
	Data string `json:"data"`
	// Quota is nil for an upper without limits.
	Quota *Quota `json:"quota,omitempty"`
	// ResidentBytes is the server's resident memory.
	ResidentBytes uint64 `json:"resident_bytes"`
}

// Quota is what an upper takes up and may take up. Limits of 0 are none.
type Quota struct {
	Bytes       int64 `json:"bytes"`
	Inodes      int64 `json:"inodes"`
	LimitBytes  int64 `json:"limit_bytes"`
	LimitInodes int64 `json:"limit_inodes"`
}

// Metrics are a mount's status and the counters since it was mounted.
type Metrics struct {
	Status
	Operations []Operation `json:"operations"`
	// BytesRead and BytesWritten passed through the server.
	BytesRead    uint64 `json:"bytes_read"`
	BytesWritten uint64 `json:"bytes_written"`

	CopyUps         uint64           `json:"copy_ups"`
	CopyUpBytes     uint64           `json:"copy_up_bytes"`
	CopyUpDurations latency.Snapshot `json:"copy_up_durations"`
	// UnsyncedFiles are copied-up files whose data may not be on disk yet.
	UnsyncedFiles uint64 `json:"unsynced_files"`

	IndexHits      uint64 `json:"index_hits"`
	IndexMisses    uint64 `json:"index_misses"`
	IndexFallbacks uint64 `json:"index_fallbacks"`
	FileHits       uint64 `json:"file_hits"`
	FileMisses     uint64 `json:"file_misses"`
	DirHits        uint64 `json:"dir_hits"`
	DirMisses      uint64 `json:"dir_misses"`

	// Inodes are those that the kernel knows; OpenFiles and OpenDirs the descriptors that the server keeps.
	Inodes    uint64 `json:"inodes"`
	OpenFiles uint64 `json:"open_files"`
	OpenDirs  uint64 `json:"open_dirs"`

	HeapBytes     uint64  `json:"heap_bytes"`
	Goroutines    uint64  `json:"goroutines"`
	CPUSeconds    float64 `json:"cpu_seconds"`
	Panics        uint64  `json:"panics"`
	Readers       uint64  `json:"readers"`
	StaleIDs      uint64  `json:"stale_ids"`
	Notifications uint64  `json:"notifications"`
	LoggedErrors  uint64  `json:"logged_errors"`
	LoggedWarns   uint64  `json:"logged_warnings"`
}

// Operation are the requests of one kind.
type Operation struct {
	// Op is the kernel's name of the opcode, such as LOOKUP.
	Op       string `json:"op"`
	Requests uint64 `json:"requests"`
	// Errors are the refused ones by class.
	Errors map[string]uint64 `json:"errors,omitempty"`
	// Durations are those since somebody asked for metrics for the first time.
	Durations latency.Snapshot `json:"durations"`
}

// Sample is one look of a watch.
type Sample struct {
	// Time is that of the server's clock.
	Time time.Time `json:"time"`
	Metrics
	// Activity is what processes did since the last sample; Dropped how many requests of others there was no room for.
	Activity []Activity `json:"activity,omitempty"`
	Dropped  uint64     `json:"dropped,omitempty"`
}

// Activity is what one process did to one path of the mount.
type Activity struct {
	// PID is the process in the server's pid namespace, 0 if it is not known there; UID its user, Command its name.
	PID     uint32 `json:"pid"`
	UID     uint32 `json:"uid"`
	Command string `json:"command,omitempty"`
	// Path is in the mount.
	Path string `json:"path"`
	// Writes are requests, Bytes what was written, Changes other changes.
	Writes   uint64    `json:"writes,omitempty"`
	Bytes    uint64    `json:"bytes,omitempty"`
	Changes  uint64    `json:"changes,omitempty"`
	CopiedUp bool      `json:"copied_up,omitempty"`
	Last     time.Time `json:"last"`
}
