package drivers

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"plyfs/internal/sys"
)

// Mounts counts the references (Get without Put) to the mounted layers of a driver. The counts are kept in a directory, one file a
// layer, written before a mount is made and removed after it is gone, so that a process that takes over after a crash finds them. A
// count is believed only if its target is still a mount point.
//
// The caller serialises calls of Get and Put for one id, with Locks.
type Mounts struct {
	dir  string
	boot string

	mu    sync.Mutex
	table map[string]mountRecord // guarded by mu
	// making are the ids whose record is written and whose mount is being made: Refresh must not take it for gone. Guarded by mu.
	making map[string]bool
}

// mountRecord is one mounted layer, and the content of its file as JSON.
type mountRecord struct {
	Target string `json:"target"`
	Count  int    `json:"count"`
	// Options are those of the Get that mounted, without Any and Alone.
	Options GetOptions `json:"options"`
	// Boot is the boot in which the mount was made: none survives the next.
	Boot string `json:"boot"`
	// Plain says that Target is a directory, not a mount point: the reference ends with the process.
	Plain bool `json:"-"`
}

// OpenMounts reads the counts in dir, which it makes if needed, and removes those whose mount is gone. It may block as Refresh does.
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

// Refresh reads the counts anew and removes those of mounts that are gone, or whose server died. References to plain directories, and
// those of a Get under way, stay. It may be called beside Get and Put. It waits some seconds for servers that hang, for all of them
// together and without a lock.
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
			if errors.Is(askServer(rec.Target), ErrHangs) {
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

// Get adds a reference to the mount of id. If it is the first one, or the mount is gone, Get calls mount, which mounts on target. A
// reference with other options than those of the mount is refused with ErrInUse, unless o.Any is set. If target is no mount point
// after mount (a driver whose layers are directories), the reference ends with this process.
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
	// The record comes before the mount: a crash between the two leaves a record without a mount, which Refresh removes, and never a
	// mount that nobody knows of.
	defer m.make(id)()
	if err := m.set(id, rec); err != nil {
		return err
	}
	if err := mount(); err != nil {
		return errors.Join(err, m.drop(id))
	}
	// Whoever mounted it has asked the server. It is not asked again: to answer it may have to read all layers.
	if isMountRoot(target) {
		return nil
	}
	rec.Plain = true
	m.mu.Lock()
	defer m.mu.Unlock()
	m.table[id] = rec
	return m.removeLocked(id)
}

// make notes that the mount of id is being made, until done is called.
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

// Put takes a reference away. If it is the last one, Put calls unmount first; if that fails, the reference stays. Without a reference
// the error wraps ErrInvalid.
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
	if rec.Plain || isMountRoot(rec.Target) {
		// A mount whose server is dead loses its reference even if it cannot be unmounted. IsMountPoint asks the server, so it is called
		// only if unmount did not find out already that it hangs.
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
