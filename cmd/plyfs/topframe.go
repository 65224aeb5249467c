package main

import (
	"bytes"
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"plyfs/internal/control"
	"plyfs/internal/latency"
)

// topRow is what one mount did within an interval; rates are a second.
type topRow struct {
	Target    string  `json:"target"`
	PID       int     `json:"pid"`
	Engine    string  `json:"engine,omitempty"`
	Container string  `json:"container,omitempty"`
	Image     string  `json:"image,omitempty"`
	Seconds   float64 `json:"seconds"` // length of the interval

	// Requests is the sum of the four kinds, Names those that ask for names, attributes and listings, Reads and Writes those of
	// data, Changes those that change anything else.
	Requests float64 `json:"requests_per_second"`
	Names    float64 `json:"names_per_second"`
	Reads    float64 `json:"reads_per_second"`
	Writes   float64 `json:"writes_per_second"`
	Changes  float64 `json:"changes_per_second"`
	Errors   float64 `json:"errors_per_second"`

	ReadBytes    float64 `json:"read_bytes_per_second"`
	WrittenBytes float64 `json:"written_bytes_per_second"`
	CopyUps      float64 `json:"copy_ups_per_second"`
	CopyUpBytes  float64 `json:"copy_up_bytes_per_second"`
	// P99 is a bound of the time that 99 percent of the requests took, in seconds.
	P99 float64 `json:"p99_seconds"`
	// CPU is the part of a processor that the server used.
	CPU           float64 `json:"cpu"`
	ResidentBytes uint64  `json:"resident_bytes"`

	Activity []control.Activity `json:"activity,omitempty"`
	Dropped  uint64             `json:"dropped,omitempty"`

	// again says that the frame before showed the same.
	again bool
}

// kind of an operation, for people.
type kind int

const (
	kindNames kind = iota
	kindRead
	kindWrite
	kindChange
)

// kindOf sorts operations; what only asks is a question of names.
func kindOf(op string) kind {
	switch op {
	case "READ":
		return kindRead
	case "WRITE", "COPY_FILE_RANGE", "COPY_FILE_RANGE_64", "FALLOCATE", "FSYNC":
		return kindWrite
	case "SETATTR", "SYMLINK", "MKNOD", "MKDIR", "UNLINK", "RMDIR", "RENAME", "RENAME2", "LINK", "CREATE", "TMPFILE", "SETXATTR",
		"REMOVEXATTR":
		return kindChange
	}
	return kindNames
}

// rowOf compares two samples of a mount.
func rowOf(owner control.Owner, before, last *control.Sample) topRow {
	r := topRow{
		Target: last.Target, PID: last.PID, Engine: owner.Engine, Container: owner.Container, Image: owner.Image,
		ResidentBytes: last.ResidentBytes, Activity: last.Activity, Dropped: last.Dropped,
	}
	r.Seconds = last.Time.Sub(before.Time).Seconds()
	if r.Seconds <= 0 {
		return r
	}
	rate := func(now, then uint64) float64 { return float64(now-min(now, then)) / r.Seconds }
	earlier := make(map[string]*control.Operation)
	for i := range before.Operations {
		earlier[before.Operations[i].Op] = &before.Operations[i]
	}
	var took latency.Snapshot
	for i := range last.Operations {
		o := &last.Operations[i]
		e := earlier[o.Op]
		if e == nil {
			e = &control.Operation{}
		}
		n := rate(o.Requests, e.Requests)
		r.count(kindOf(o.Op), n)
		for class, count := range o.Errors {
			r.Errors += rate(count, e.Errors[class])
		}
		d := o.Durations.Sub(&e.Durations)
		took.Add(&d)
	}
	r.ReadBytes, r.WrittenBytes = rate(last.BytesRead, before.BytesRead), rate(last.BytesWritten, before.BytesWritten)
	r.CopyUps, r.CopyUpBytes = rate(last.CopyUps, before.CopyUps), rate(last.CopyUpBytes, before.CopyUpBytes)
	r.P99 = took.Quantile(0.99).Seconds()
	r.CPU = max(last.CPUSeconds-before.CPUSeconds, 0) / r.Seconds
	return r
}

func (r *topRow) count(k kind, n float64) {
	r.Requests += n
	switch k {
	case kindRead:
		r.Reads += n
	case kindWrite:
		r.Writes += n
	case kindChange:
		r.Changes += n
	default:
		r.Names += n
	}
}

// frame is one look at all mounts.
type frame struct {
	at   time.Time
	rows []topRow
}

// frame takes the latest samples, the busiest mount first.
func (t *top) frame() frame {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := frame{at: time.Now()}
	for _, m := range t.mounts {
		if m.before == nil {
			continue
		}
		r := rowOf(m.owner, m.before, m.last)
		if m.shown {
			r.Activity, r.Dropped, r.again = nil, 0, true
		}
		m.shown = true
		f.rows = append(f.rows, r)
	}
	slices.SortFunc(f.rows, func(a, b topRow) int {
		return cmp.Or(-cmp.Compare(a.Requests, b.Requests), cmp.Compare(a.Target, b.Target), cmp.Compare(a.PID, b.PID))
	})
	return f
}

// maxTopFiles is how many files are listed where the screen sets no bound.
const maxTopFiles = 40

// lines are the frame for people; height bounds their number, 0 does not.
func (f frame) lines(height int) []string {
	var sum topRow
	for _, r := range f.rows {
		sum.Requests += r.Requests
		sum.CopyUps += r.CopyUps
		sum.WrittenBytes += r.WrittenBytes
	}
	out := []string{
		fmt.Sprintf("plyfs top  %s  mounts %d  requests %s/s  copy-ups %s/s  written %s/s", f.at.Format(time.TimeOnly), len(f.rows),
			rateText(sum.Requests), rateText(sum.CopyUps), shortSize(sum.WrittenBytes)),
		"",
	}
	mounts := len(f.rows)
	files, hidden := f.files()
	if height > 0 {
		room := max(height-len(out)-2, 2)
		if mounts > room*2/3 && len(files) > 0 {
			mounts = room * 2 / 3
		}
		mounts = min(mounts, room)
		files = files[:max(min(len(files), room-mounts-2), 0)]
	} else if len(files) > maxTopFiles {
		hidden += uint64(len(files) - maxTopFiles)
		files = files[:maxTopFiles]
	}
	out = append(out, f.mountLines(mounts)...)
	if len(files) > 0 {
		out = append(out, "")
		out = append(out, fileLines(files)...)
	}
	if hidden > 0 && height == 0 {
		out = append(out, fmt.Sprintf("and %d more", hidden))
	}
	return out
}

func (f frame) mountLines(n int) []string {
	rows := [][]string{{
		"PID", "MOUNT", "REQ/S", "NAMES", "READ", "WRITE", "CHANGE", "ERR", "P99", "COPYUP", "COPIED", "READ/S", "WRITTEN/S", "CPU", "RSS",
	}}
	for _, r := range f.rows[:n] {
		name := r.Target
		if r.Container != "" {
			name = r.Container
		}
		rows = append(rows, []string{
			strconv.Itoa(r.PID), oneLine(tail(name, 40)), rateText(r.Requests), rateText(r.Names), rateText(r.Reads),
			rateText(r.Writes), rateText(r.Changes), rateText(r.Errors), durationText(r.P99), rateText(r.CopyUps),
			shortSize(r.CopyUpBytes), shortSize(r.ReadBytes), shortSize(r.WrittenBytes),
			fmt.Sprintf("%.0f%%", r.CPU*100), shortSize(r.ResidentBytes),
		})
	}
	return table(rows)
}

// topFile is an activity and the mount that it was in.
type topFile struct {
	control.Activity
	mount string
}

// files lists what all mounts' processes did, those that wrote most first. Processes of one name that follow each other, as
// those of a script, are one line, with the latest of them.
func (f frame) files() (list []topFile, dropped uint64) {
	type key struct{ mount, command, path string }
	at := make(map[key]int)
	for _, r := range f.rows {
		dropped += r.Dropped
		for _, a := range r.Activity {
			k := key{r.Target, a.Command, a.Path}
			i, known := at[k]
			if !known {
				at[k] = len(list)
				list = append(list, topFile{a, r.Target})
				continue
			}
			have := &list[i]
			have.Bytes, have.Writes, have.Changes = have.Bytes+a.Bytes, have.Writes+a.Writes, have.Changes+a.Changes
			have.CopiedUp = have.CopiedUp || a.CopiedUp
			if a.Last.After(have.Last) {
				have.PID, have.Last = a.PID, a.Last
			}
		}
	}
	slices.SortStableFunc(list, func(a, b topFile) int {
		return cmp.Or(-cmp.Compare(a.Bytes, b.Bytes), b.Last.Compare(a.Last), cmp.Compare(a.Path, b.Path))
	})
	return list, dropped
}

func fileLines(files []topFile) []string {
	rows := [][]string{{"PID", "COMMAND", "WRITTEN", "WRITES", "CHANGES", "COPY-UP", "FILE"}}
	for _, a := range files {
		pid, copied := "-", ""
		if a.PID > 0 {
			pid = strconv.FormatUint(uint64(a.PID), 10)
		}
		if a.CopiedUp {
			copied = "yes"
		}
		path := a.Path
		if strings.HasPrefix(path, "/") {
			path = filepath.Join(a.mount, path)
		}
		rows = append(rows, []string{
			pid, knownOr(oneLine(a.Command)), shortSize(a.Bytes), strconv.FormatUint(a.Writes, 10),
			strconv.FormatUint(a.Changes, 10), knownOr(copied), oneLine(path),
		})
	}
	return table(rows)
}

// table aligns columns.
func table(rows [][]string) []string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	_ = w.Flush() // to memory
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
}

// tail is the end of a name that is too long: targets differ there.
func tail(s string, most int) string {
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	return "..." + string(r[len(r)-most+3:])
}

func rateText(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}

// durationText is a bound in seconds, as one of package latency.
func durationText(seconds float64) string {
	if seconds == 0 {
		return "-"
	}
	return time.Duration(seconds * float64(time.Second)).Round(time.Microsecond).String()
}
