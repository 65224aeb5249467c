package fusefs

import (
	"cmp"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// maxActivities bounds what a Watcher keeps between two calls of Take.
const maxActivities = 1000

// deletedPath is the path of what has none.
const deletedPath = "(deleted)"

// Activity is what one process did to one path, of all that changes the tree.
type Activity struct {
	// PID is the process, in the server's pid namespace; 0 if the server can't see it, or if the kernel wrote on behalf of
	// nobody. UID is its user, Command its name.
	PID, UID uint32
	Command  string
	// Path is in the mount, beginning with a slash; "(deleted)" for a file without a name.
	Path string
	// Writes is the number of WRITE requests, Bytes what they and copies wrote, Changes all other changes: of names, attributes
	// and sizes, and files that were opened to be written past the server.
	Writes, Bytes, Changes uint64
	// CopiedUp says that the file was copied up. It is told of processes that changed it at that time.
	CopiedUp bool
	// Last is the time of the latest request.
	Last time.Time
}

// Watcher gathers the activities of a mount, from Watch to Close.
type Watcher struct {
	f *FS

	mu      sync.Mutex
	seen    map[activityKey]*Activity
	copied  map[string]struct{}
	dropped uint64
}

type activityKey struct {
	pid  uint32
	path string
}

// watchers are those of a mount; nobody watching costs a request one load.
type watchers struct {
	mu   sync.Mutex
	list atomic.Pointer[[]*Watcher] // nil for none; replaced under mu
}

// Watch begins to gather activities. Each changing request takes some microseconds more meanwhile, since its path and the
// name of its process are looked up. The caller must Close the Watcher.
func (f *FS) Watch() *Watcher {
	w := &Watcher{f: f}
	w.reset()
	f.watchers.change(func(list []*Watcher) []*Watcher { return append(list, w) })
	return w
}

// Close ends the gathering. Closing twice does nothing.
func (w *Watcher) Close() {
	w.f.watchers.change(func(list []*Watcher) []*Watcher {
		return slices.DeleteFunc(list, func(other *Watcher) bool { return other == w })
	})
}

func (ws *watchers) change(f func([]*Watcher) []*Watcher) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	var list []*Watcher
	if old := ws.list.Load(); old != nil {
		list = slices.Clone(*old)
	}
	if list = f(list); len(list) == 0 {
		ws.list.Store(nil)
		return
	}
	ws.list.Store(&list)
}

// Take returns what was gathered since the last call, the latest first, and how many requests of further processes and paths
// there was no room for.
func (w *Watcher) Take() (list []Activity, dropped uint64) {
	w.mu.Lock()
	seen, copied := w.seen, w.copied
	dropped = w.dropped
	w.reset()
	w.mu.Unlock()
	told := make(map[string]bool)
	for _, a := range seen {
		if _, ok := copied[a.Path]; ok {
			a.CopiedUp = true
			told[a.Path] = true
		}
		list = append(list, *a)
	}
	for p := range copied {
		if !told[p] {
			list = append(list, Activity{Path: p, CopiedUp: true, Last: time.Now()})
		}
	}
	slices.SortFunc(list, func(a, b Activity) int {
		return cmp.Or(b.Last.Compare(a.Last), strings.Compare(a.Path, b.Path))
	})
	return list, dropped
}

// reset forgets all. Precondition: w.mu is held, or nobody else has w.
func (w *Watcher) reset() {
	w.seen, w.copied, w.dropped = make(map[activityKey]*Activity), make(map[string]struct{}), 0
}

func (w *Watcher) copiedUp(p string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.copied) < maxActivities {
		w.copied[p] = struct{}{}
	}
}

// note adds one request. The process still waits for its answer, so that its name can be read now and perhaps not later.
func (w *Watcher) note(pid, uid uint32, p string, add func(*Activity)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := activityKey{pid, p}
	a := w.seen[key]
	if a == nil {
		if len(w.seen) >= maxActivities {
			w.dropped++
			return
		}
		a = &Activity{PID: pid, UID: uid, Command: commandOf(pid), Path: p}
		w.seen[key] = a
	}
	add(a)
	a.Last = time.Now()
}

// commandOf returns the name of a process, "" if it can't be seen. It reads what the kernel has: the command line is in the
// memory of the process, which may lie in a file of this mount, and would wait for this very request.
func commandOf(pid uint32) string {
	if pid == 0 {
		return ""
	}
	b, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(b), "\n")
}

// watched tells the watchers of a request that succeeded.
func (w *worker) watched(list []*Watcher, op uint32, req request, reply []byte) {
	node, name, bytes, ok := changes(op, req, reply)
	if !ok {
		return
	}
	n := w.table.node(node)
	if n == nil {
		return
	}
	p := w.u.Path(n)
	switch {
	case name != "":
		p = path.Join(p, name)
	case p == "/" && node != rootID:
		p = deletedPath
	}
	uid := order.Uint32(req[24:])
	for _, watcher := range list {
		watcher.note(req.pid(), uid, p, func(a *Activity) {
			a.Bytes += bytes
			if op == opWrite {
				a.Writes++
			} else {
				a.Changes++
			}
		})
	}
}

// changes says what a request that succeeded changed: a node, or a name in the directory node.
func changes(op uint32, req request, reply []byte) (node uint64, name string, bytes uint64, ok bool) {
	node = req.node()
	switch op {
	case opWrite:
		return node, "", uint64(order.Uint32(reply[outHeaderSize:])), true
	case opCopyRange:
		return req.u64(16), "", uint64(order.Uint32(reply[outHeaderSize:])), true
	case opSetattr, opSetxattr, opRemovexattr, opFallocate:
		return node, "", 0, true
	case opOpen:
		return node, "", 0, req.u32(0)&unix.O_ACCMODE != unix.O_RDONLY
	case opCreate, opMknod:
		return node, req.name(16), 0, true
	case opMkdir, opLink:
		return node, req.name(8), 0, true
	case opSymlink, opUnlink, opRmdir:
		return node, req.name(0), 0, true
	case opRename:
		_, to := req.names(8)
		return req.u64(0), to, 0, true
	case opRename2:
		_, to := req.names(16)
		return req.u64(0), to, 0, true
	}
	return 0, "", 0, false
}

// tellCopiedUp tells the watchers of a copied-up file.
func (f *FS) tellCopiedUp(p func() string) {
	list := f.watchers.list.Load()
	if list == nil {
		return
	}
	where := p()
	for _, w := range *list {
		w.copiedUp(where)
	}
}
