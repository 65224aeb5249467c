package fusefs

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"plyfs/fs/union"
)

// opendir answers OPENDIR. After ENOSYS the kernel opens directories by itself and caches their listings.
func (f *FS) opendir(id uint64, o *opened) fuse.Status {
	if f.keep {
		return fuse.ENOSYS
	}
	if f.table.node(id) == nil {
		return fuse.Status(unix.ESTALE)
	}
	*o = opened{}
	return fuse.OK
}

// listed is called before the kernel is told of the end of a directory, which makes the listing whole that it keeps, if it does. Without
// its first page that listing is thrown away when it is to be used, instead of showing what is gone and not what came (cf.
// fs/fuse/readdir.c fuse_readdir_cached). The last page has to stay: without it a listing that is not whole yet never becomes so, and
// none is kept.
func (f *FS) listed(n *union.Node, id uint64) {
	if dev := f.dev.Load(); dev != nil && f.keep && f.u.ListingTorn(n) {
		f.notify(dev.Fd(), id, 0)
	}
}

// direntRoom is about the least that an entry takes in a listing, in bytes. By it the union is asked for as many entries as fit, and
// not for many more.
const direntRoom = 32

// readdir fills list with names and types.
func (f *FS) readdir(id, off uint64, size int, scratch []union.Dirent, list *fuse.DirEntryList) fuse.Status {
	n := f.table.node(id)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	for first := true; ; first = false {
		want := min(len(scratch), size/direntRoom+1)
		k, err := f.u.ReadDir(n, off, scratch[:want])
		switch {
		case err != nil && !first:
			return fuse.OK // what there is has been entered already; the next request begins with the error
		case err != nil:
			return f.status("readdir", err)
		}
		for i := range scratch[:k] {
			d := &scratch[i]
			if !list.AddDirEntry(fuse.DirEntry{Name: d.Name, Ino: d.Ino, Mode: d.Type, Off: d.Next}) {
				return fuse.OK
			}
			size -= direntRoom
			off = d.Next
		}
		if k == 0 {
			if first {
				f.listed(n, id)
			}
			return fuse.OK
		}
	}
}

// readdirplus fills list with names and, unless the reader was seen not to want them, entries.
func (f *FS) readdirplus(id, off uint64, pid uint32, size int, scratch []union.Dirent, list *fuse.DirEntryList) fuse.Status {
	n := f.table.node(id)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	const room = 128 + direntRoom
	plus := f.walk.reading(pid, id, off)
	for first := true; ; first = false {
		want := min(len(scratch), size/room+1)
		k, err := f.u.ReadDir(n, off, scratch[:want])
		switch {
		case err != nil && !first:
			return fuse.OK // what there is has been entered already; the next request begins with the error
		case err != nil:
			return f.status("readdir", err)
		}
		for i := range scratch[:k] {
			d := &scratch[i]
			out := list.AddDirLookupEntry(fuse.DirEntry{Name: d.Name, Ino: d.Ino, Mode: d.Type, Off: d.Next})
			if out == nil {
				return fuse.OK
			}
			size -= room
			off = d.Next
			if d.Name == "." || d.Name == ".." {
				continue
			}
			if plus {
				f.plus(n, d, out)
			} else if d.Type != unix.S_IFDIR {
				f.walk.unseen(pid, id)
			}
		}
		if k == 0 {
			if first {
				f.listed(n, id)
			}
			return fuse.OK
		}
	}
}

// plus adds the entry of one name. Without it, after an error or when the name has gone meanwhile, the kernel looks
// the name up if it ever needs it.
func (f *FS) plus(dir *union.Node, d *union.Dirent, out *fuse.EntryOut) {
	n, a, err := f.u.Lookup(dir, d.Name)
	if err != nil {
		return
	}
	var e entry
	e.Attr = a
	f.enter(n, &e)
	f.fillEntry(out, &e)
}

// walkers guesses for each thread that lists directories whether it wants more than the names. An entry costs a third of the
// LOOKUP that it saves if the name is looked at afterwards, as by ls -l; for programs like find it is wasted. When a listing was
// answered without entries, the lookups of its files that follow show which would have been better. When it was answered with
// entries nothing shows that, so now and then the beginning of a listing is answered without them, to find out. Mistakes cost
// time only, so nothing is locked.
//
// The kernel's own guess (FUSE_READDIRPLUS_AUTO) knows one directory at a time, and most programs read it to its end
// before they look at anything.
type walkers struct {
	threads [64]walker        // by thread id
	plain   [64]atomic.Uint64 // by directory: id<<16 | place of the thread that got it without entries
}

// probeEvery is the number of listings with entries between two that are tried without.
const probeEvery = 64

// walker is one thread. All of it is guesswork, and may be mixed up by two threads that share a place.
type walker struct {
	pid    atomic.Uint32
	names  atomic.Bool   // names are enough, as far as is known
	tried  atomic.Bool   // dir, or its beginning, was answered without entries
	left   atomic.Uint32 // listings with entries until the next try
	dir    atomic.Uint64 // the directory being listed
	files  atomic.Uint32 // answered without entries: what is no directory, which a mere walk looks up too
	looked atomic.Uint32 // how many of files were looked up
}

// reading notes that pid asks for a part of dir, and reports whether the answer shall have entries.
func (w *walkers) reading(pid uint32, dir, off uint64) bool {
	place := uint64(pid) % uint64(len(w.threads))
	p := &w.threads[place]
	if p.pid.Load() != pid {
		p.pid.Store(pid)
		p.names.Store(false)
		p.tried.Store(false)
		p.left.Store(1)
		p.dir.Store(0)
	} else if off != 0 && p.dir.Load() == dir {
		return !p.names.Load()
	}
	if p.tried.Load() && p.files.Load() > 0 {
		p.names.Store(p.looked.Load()*3 < p.files.Load())
		p.left.Store(probeEvery)
	}
	p.dir.Store(dir)
	p.files.Store(0)
	p.looked.Store(0)
	try := p.names.Load() || p.left.Load() == 0
	p.tried.Store(try)
	if try {
		w.plain[dir%uint64(len(w.plain))].Store(dir<<16 | place)
		return false
	}
	p.left.Add(^uint32(0))
	return true
}

// unseen notes that a file of dir was listed without its entry.
func (w *walkers) unseen(pid uint32, dir uint64) {
	if p := &w.threads[uint64(pid)%uint64(len(w.threads))]; p.dir.Load() == dir {
		p.files.Add(1)
	}
}

// looked notes a lookup in dir that found an object of the given mode.
func (w *walkers) looked(dir uint64, mode uint32) {
	mark := w.plain[dir%uint64(len(w.plain))].Load()
	if mark>>16 != dir || mode&unix.S_IFMT == unix.S_IFDIR {
		return
	}
	if p := &w.threads[mark&0xffff]; p.dir.Load() == dir {
		p.looked.Add(1)
	}
}
