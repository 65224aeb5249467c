package drivers

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// Mounts counts who uses the mounted layers of a driver. The counts are kept in a directory, one file a layer, written
// before a mount is made and after it is gone, so that a process that takes over after a crash knows them; what it
// reads there it believes only as far as something is mounted.
//
// Calls for one id are serialised by the caller, with Locks.
type Mounts struct {
	dir  string
	boot string

	mu    sync.Mutex
	table map[string]mountRecord // guarded by mu
	// making are the ids whose record is there, and whose mount is being made. Guarded by mu.
	making map[string]bool
}

// mountRecord is one mounted layer, and the content of its file.
type mountRecord struct {
	Target string `json:"target"`
	Count  int    `json:"count"`
	// Options tells a mount from one with other options.
	Options GetOptions `json:"options"`
	// Boot is the boot in which the mount was made: none survives the next.
	Boot string `json:"boot"`
	// Plain says that Target is a directory, not a mount point: the reference ends with the process.
	Plain bool `json:"-"`
}

// OpenMounts reads the counts in dir, which it makes if needed, and forgets those whose mount is gone.
func OpenMounts(dir string) (*Mounts, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	boot, err := sys.BootID()
	if err != nil {
		return nil, err
	}
	m := &Mounts{dir: dir, boot: boot, table: make(map[string]mountRecord), making: make(map[string]bool)}
	return m, m.Refresh()
}

// Refresh reads the counts anew and drops those of mounts that are gone, also the servers of which died. References to
// plain directories stay, and those that a Get is about to have. It may be called beside Get and Put. Servers that hang are waited for
// together, without a lock.
func (m *Mounts) Refresh() error {
	hang := m.hanging()
	m.mu.Lock()
	defer m.mu.Unlock()
	names, err := os.ReadDir(m.dir)
	if err != nil {
		return err
	}
	seen := make(map[string]bool, len(names))
	var errs []error
	for _, e := range names {
		id := e.Name()
		if ValidID(id) != nil {
			// A file that was being written when its process died.
			errs = append(errs, os.Remove(filepath.Join(m.dir, id)))
			continue
		}
		seen[id] = true
		if m.making[id] {
			continue
		}
		rec, err := m.read(id)
		if err != nil || rec.Boot != m.boot || !hang[rec.Target] && !IsMountPoint(rec.Target) {
			delete(m.table, id)
			errs = append(errs, os.Remove(filepath.Join(m.dir, id)))
			continue
		}
		m.table[id] = rec
	}
	for id, rec := range m.table {
		if !rec.Plain && !seen[id] {
			delete(m.table, id)
		}
	}
	return errors.Join(errs...)
}

// hanging are the targets of this boot's records whose servers do not answer.
func (m *Mounts) hanging() map[string]bool {
	names, err := os.ReadDir(m.dir)
	if err != nil {
		return nil // Refresh says so
	}
	hang := make(map[string]bool)
	var mu sync.Mutex
	var all sync.WaitGroup
	room := make(chan struct{}, askAtOnce)
	for _, e := range names {
		rec, err := m.read(e.Name())
		if err != nil || rec.Boot != m.boot {
			continue
		}
		room <- struct{}{}
		all.Go(func() {
			defer func() { <-room }()
			if errors.Is(Ask(rec.Target), ErrHangs) {
				mu.Lock()
				hang[rec.Target] = true
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return hang
}

// read reads the record of id, which is replaced in one step.
func (m *Mounts) read(id string) (rec mountRecord, err error) {
	b, err := os.ReadFile(filepath.Join(m.dir, id))
	if err != nil {
		return rec, err
	}
	return rec, json.Unmarshal(b, &rec)
}

// writeLocked replaces the record of id. It is not synced: a mount does not outlive a power cut either.
func (m *Mounts) writeLocked(id string, rec mountRecord) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	// No id begins so.
	tmp := filepath.Join(m.dir, "."+id)
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(m.dir, id))
}

func (m *Mounts) removeLocked(id string) error {
	err := os.Remove(filepath.Join(m.dir, id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Get adds a reference to the mount of id at target. If it is the first, or the mount is gone, mount makes it. A
// reference with other options than those of the mount is refused with ErrInUse, unless o.Any is set. If mount leaves
// target a plain directory, the reference ends with this process.
func (m *Mounts) Get(id, target string, o GetOptions, mount func() error) error {
	m.mu.Lock()
	rec, held := m.table[id]
	m.mu.Unlock()
	takeAny := o.Any
	o.Any, o.Alone = false, false
	if held && (rec.Plain || IsMountPoint(rec.Target)) {
		if rec.Options != o && !takeAny {
			return fmt.Errorf("layer %s is mounted with other options: %w", id, ErrInUse)
		}
		rec.Count++
		return m.set(id, rec)
	}
	rec = mountRecord{Target: target, Count: 1, Options: o, Boot: m.boot}
	// The record comes first: a crash between the two leaves a record without a mount, which is dropped, and never a mount
	// that nobody knows.
	defer m.make(id)()
	if err := m.set(id, rec); err != nil {
		return err
	}
	if err := mount(); err != nil {
		return errors.Join(err, m.drop(id))
	}
	// Whoever made it asked its server: that is not done again, which may have to read all layers to answer.
	if isMountRoot(target, unix.AT_STATX_DONT_SYNC) {
		return nil
	}
	rec.Plain = true
	m.mu.Lock()
	defer m.mu.Unlock()
	m.table[id] = rec
	return m.removeLocked(id)
}

// make notes that a mount is being made, until done is called.
func (m *Mounts) make(id string) (done func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.making[id] = true
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.making, id)
	}
}

// Put takes a reference away. If it was the last, unmount undoes the mount; while that fails the reference stays.
// Without a reference the error wraps ErrInvalid.
func (m *Mounts) Put(id string, unmount func(target string) error) error {
	m.mu.Lock()
	rec, held := m.table[id]
	m.mu.Unlock()
	if !held {
		return fmt.Errorf("layer %s is not mounted: %w", id, ErrInvalid)
	}
	if rec.Count > 1 {
		rec.Count--
		return m.set(id, rec)
	}
	if rec.Plain || isMountRoot(rec.Target, unix.AT_STATX_DONT_SYNC) {
		// One whose server is gone is not worth the reference, whoever has something open in it; one that hangs must not be asked.
		if err := unmount(rec.Target); err != nil && (rec.Plain || errors.Is(err, ErrHangs) || IsMountPoint(rec.Target)) {
			return err
		}
	}
	return m.drop(id)
}

// Count is the number of references to the mount of id.
func (m *Mounts) Count(id string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.table[id].Count
}

// References is the number of references to each layer that has any. The caller owns the map.
func (m *Mounts) References() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make(map[string]int, len(m.table))
	for id, rec := range m.table {
		all[id] = rec.Count
	}
	return all
}

// Target is where id is mounted, "" if it is not.
func (m *Mounts) Target(id string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.table[id].Target
}

func (m *Mounts) set(id string, rec mountRecord) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !rec.Plain {
		if err := m.writeLocked(id, rec); err != nil {
			return fmt.Errorf("count the users of layer %s: %w", id, err)
		}
	}
	m.table[id] = rec
	return nil
}

func (m *Mounts) drop(id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.table, id)
	if err := m.removeLocked(id); err != nil {
		return fmt.Errorf("count the users of layer %s: %w", id, err)
	}
	return nil
}

// IsMountPoint says whether something is mounted at path. A FUSE mount whose server is gone does not count as mounted, one whose server
// hangs does.
func IsMountPoint(path string) bool {
	if !isMountRoot(path, unix.AT_STATX_DONT_SYNC) {
		return false
	}
	err := Ask(path)
	return err == nil || errors.Is(err, ErrHangs)
}

// IsDead says whether a file system whose server is gone is mounted at path.
func IsDead(path string) bool {
	if !isMountRoot(path, unix.AT_STATX_DONT_SYNC) {
		return false
	}
	err := Ask(path)
	return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
}

const (
	// answerWithin bounds how long the server of a mount is waited for.
	answerWithin = 2 * time.Second
	// askAtOnce is how many servers are asked at a time: each takes a thread.
	askAtOnce = 64
)

// asked are the questions that have no answer yet, by path: one thread waits for each, however many want to know.
var asked sync.Map

// answer is set when done is closed.
type answer struct {
	asked time.Time
	done  chan struct{}
	err   error
}

// Ask has the server of what is mounted at path answer for its root: the kernel would answer for a dead server from what it knows by
// heart. The error is that of statx(2), or wraps ErrHangs for a server that does not answer in time, at once if it is known to hang.
func Ask(path string) error {
	late := time.NewTimer(answerWithin)
	defer late.Stop()
	for {
		a := &answer{asked: time.Now(), done: make(chan struct{})}
		earlier, waiting := asked.LoadOrStore(path, a)
		if waiting {
			a = earlier.(*answer)
			if time.Since(a.asked) > answerWithin {
				return fmt.Errorf("the mount on %s is %w", path, ErrHangs)
			}
		} else {
			go func() {
				var st unix.Statx_t
				const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_FORCE_SYNC
				a.err = unix.Statx(unix.AT_FDCWD, path, flags, unix.STATX_BASIC_STATS, &st)
				asked.Delete(path)
				close(a.done)
			}()
		}
		select {
		case <-a.done:
			if !waiting {
				return a.err // else it answers an earlier question
			}
		case <-late.C:
			return fmt.Errorf("the mount on %s is %w", path, ErrHangs)
		}
	}
}

// isMountRoot says whether path is the root of a mount, by a statx with the given way to synchronise.
func isMountRoot(path string, sync int) bool {
	var st unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | sync
	if err := unix.Statx(unix.AT_FDCWD, path, flags, unix.STATX_BASIC_STATS, &st); err != nil {
		return false
	}
	return st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}
