package fusefs

import (
	"fmt"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestClassOf(t *testing.T) {
	for errno, want := range map[unix.Errno]ErrorClass{
		unix.ENOENT: ClassNotFound, unix.ENODATA: ClassNotFound, unix.ENOTEMPTY: ClassExists, unix.EROFS: ClassPermission,
		unix.EINVAL: ClassInvalid, unix.ENOSYS: ClassUnsupported, unix.EXDEV: ClassUnsupported, unix.ESTALE: ClassStale,
		unix.EDQUOT: ClassSpace, unix.EMFILE: ClassResource, unix.EIO: ClassIO, unix.EPROTO: ClassOther, unix.Errno(4000): ClassOther,
	} {
		if got := classes()[classOf(errno)]; got != want {
			t.Errorf("%v is of class %s, want %s", errno, got, want)
		}
	}
}

// rawRequest is a request of the kernel with the given argument.
func rawRequest(op uint32, node uint64, arg []byte) request {
	r := make([]byte, inHeaderSize, inHeaderSize+len(arg))
	order.PutUint32(r[4:], op)
	order.PutUint64(r[16:], node)
	return append(r, arg...)
}

// TestChanges: what a request changes is found where the protocol has it.
func TestChanges(t *testing.T) {
	arg := func(skip int, names ...string) []byte {
		b := make([]byte, skip)
		for _, n := range names {
			b = append(append(b, n...), 0)
		}
		return b
	}
	u64 := func(v ...uint64) []byte {
		b := make([]byte, 8*len(v)+32)
		for i := range v {
			order.PutUint64(b[8*i:], v[i])
		}
		return b
	}
	reply := make([]byte, outHeaderSize+8)
	order.PutUint32(reply[outHeaderSize:], 512)
	for _, tt := range []struct {
		op   uint32
		arg  []byte
		want string
	}{
		{opWrite, u64(0, 0, 0), "5 \"\" 512 true"},
		{opCopyRange, u64(0, 0, 9), "9 \"\" 512 true"},
		{opSetattr, u64(0), "5 \"\" 0 true"},
		{opCreate, arg(16, "new"), "5 \"new\" 0 true"},
		{opMknod, arg(16, "new"), "5 \"new\" 0 true"},
		{opMkdir, arg(8, "new"), "5 \"new\" 0 true"},
		{opLink, arg(8, "new"), "5 \"new\" 0 true"},
		{opSymlink, arg(0, "new", "target"), "5 \"new\" 0 true"},
		{opUnlink, arg(0, "old"), "5 \"old\" 0 true"},
		{opRename, append(u64(7)[:8], arg(0, "old", "new")...), "7 \"new\" 0 true"},
		{opRename2, append(u64(7, 0)[:16], arg(0, "old", "new")...), "7 \"new\" 0 true"},
		{opOpen, []byte{unix.O_RDWR, 0, 0, 0}, "5 \"\" 0 true"},
		{opOpen, []byte{unix.O_RDONLY, 0, 0, 0}, "5 \"\" 0 false"},
		{opLookup, arg(0, "name"), "0 \"\" 0 false"},
		{opRead, u64(0, 0, 0), "0 \"\" 0 false"},
	} {
		node, name, bytes, ok := changes(tt.op, rawRequest(tt.op, 5, tt.arg), reply)
		if got := fmt.Sprintf("%d %q %d %v", node, name, bytes, ok); got != tt.want {
			t.Errorf("%s: %s, want %s", opName(tt.op), got, tt.want)
		}
	}
}

// TestWatchers: activities reach all who watch, from many readers at once, and memory is bounded.
func TestWatchers(t *testing.T) {
	f := &FS{}
	a, b := f.Watch(), f.Watch()
	note := func(pid uint32, path string) {
		for _, w := range *f.watchers.list.Load() {
			w.note(pid, 0, path, func(a *Activity) { a.Writes++ })
		}
	}
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for range 100 {
				note(uint32(os.Getpid()), fmt.Sprint("/", i))
				f.tellCopiedUp(func() string { return "/0" })
			}
		})
	}
	all.Wait()
	for _, w := range []*Watcher{a, b} {
		list, dropped := w.Take()
		var writes uint64
		for _, x := range list {
			writes += x.Writes
			if x.Command == "" || x.CopiedUp != (x.Path == "/0") {
				t.Errorf("%+v", x)
			}
		}
		if len(list) != 4 || writes != 400 || dropped != 0 {
			t.Errorf("%d activities of %d writes, %d dropped", len(list), writes, dropped)
		}
		if list, dropped := w.Take(); len(list) != 0 || dropped != 0 {
			t.Errorf("taken twice: %+v, %d", list, dropped)
		}
	}
	b.Close()
	for i := range maxActivities + 7 {
		note(0, fmt.Sprint("/", i))
	}
	if list, dropped := a.Take(); len(list) != maxActivities || dropped != 7 {
		t.Errorf("%d activities, %d dropped", len(list), dropped)
	}
	if list, _ := b.Take(); len(list) != 0 {
		t.Errorf("closed, and yet told of %d", len(list))
	}
	f.tellCopiedUp(func() string { return "/lonely" })
	if list, _ := a.Take(); len(list) != 1 || list[0].Path != "/lonely" || !list[0].CopiedUp || list[0].PID != 0 {
		t.Errorf("a copy-up that nobody is known to have caused: %+v", list)
	}
	a.Close()
	a.Close()
	if f.watchers.list.Load() != nil {
		t.Error("watched by nobody, and not idle")
	}
}

// BenchmarkHandle is what counting costs a request beside handling it: a request that is refused at once.
func BenchmarkHandle(b *testing.B) {
	for _, timed := range []bool{false, true} {
		b.Run(fmt.Sprintf("timed=%v", timed), func(b *testing.B) {
			f := &FS{}
			if timed {
				f.MeasureDurations()
			}
			w := &worker{FS: f, out: make([]byte, 1024)}
			req := rawRequest(opAccess, 1, make([]byte, 8))
			before := cpuTime()
			for range b.N {
				w.handle(req)
			}
			b.ReportMetric(float64((cpuTime()-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
	b.Run("uncounted", func(b *testing.B) {
		w := &worker{FS: &FS{}, out: make([]byte, 1024)}
		req := rawRequest(opAccess, 1, make([]byte, 8))
		before := cpuTime()
		for range b.N {
			w.answer(req)
		}
		b.ReportMetric(float64((cpuTime()-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
	})
}
