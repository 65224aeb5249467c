package fusefs

import (
	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"plyfs/fs/union"
)

// worker decodes and answers requests, one at a time. What a handler needs lives in it, so that a request costs no
// allocation.
type worker struct {
	*FS
	library *fuse.ProtocolServer // for the requests that are not decoded here

	// in and out are the buffers of a request and its answer: inMap and outMap from where the data of WRITE and READ then begins a
	// page. They are outside of the Go heap.
	in, out       []byte
	inMap, outMap []byte
	inIov         [1][]byte
	outIov        [1][]byte
	scratch       []union.Dirent

	caller union.Caller
	groups [4]uint32
	entry  entry
	attrs  attrs
	opened opened
	set    setattrIn
	create fuse.CreateIn
}

// payload is where the answer's data goes.
func (w *worker) payload() []byte { return w.out[outHeaderSize:] }

// answer handles one request and returns what to write to the device: nothing for a request without an answer.
func (w *worker) answer(req request) (reply []byte) {
	op := req.opcode()
	w.counts.count(op)
	unique := req.unique()
	defer func() {
		if reason := recover(); reason != nil {
			code := w.panicked(reason)
			if op == opForget || op == opBatchForget {
				reply = nil
				return
			}
			putHeader(w.out, outHeaderSize, code, unique)
			reply = w.out[:outHeaderSize]
		}
	}()
	var size int
	var code fuse.Status
	switch op {
	case opForget:
		w.forget(req.node(), req.u64(0))
		return nil
	case opBatchForget:
		w.batchForget(req)
		return nil
	default:
		if w.cfg.Debug {
			return w.slow(req)
		}
		var known bool
		if size, code, known = w.dispatch(op, req); !known {
			return w.slow(req)
		}
	}
	if !code.Ok() {
		size = 0
	}
	putHeader(w.out, outHeaderSize+size, code, unique)
	return w.out[:outHeaderSize+size]
}

// slow lets the library decode a request.
func (w *worker) slow(req request) []byte {
	w.inIov[0], w.outIov[0] = req, w.out
	n, code := w.library.HandleRequest(w.inIov[:], w.outIov[:])
	if !code.Ok() {
		putHeader(w.out, outHeaderSize, code, req.unique())
		n = outHeaderSize
	}
	return w.out[:n]
}

func (w *worker) batchForget(req request) {
	list := req[inHeaderSize+8:]
	for range req.u32(0) {
		if len(list) < 16 {
			return
		}
		w.forget(order.Uint64(list), order.Uint64(list[8:]))
		list = list[16:]
	}
}

// dispatch handles a request that is decoded here, and returns the size of the answer behind its header.
func (w *worker) dispatch(op uint32, req request) (size int, code fuse.Status, known bool) {
	switch op {
	case opLookup:
		w.entry = entry{}
		size, code = w.entryOut(w.lookup(req.pid(), req.node(), req.name(0), &w.entry))
	case opGetattr:
		size, code = w.attrOut(w.getattr(req.node(), &w.attrs))
	case opSetattr:
		req.caller(&w.caller)
		req.setattr(&w.set)
		size, code = w.attrOut(w.setattr(&w.caller, req.node(), &w.set, &w.attrs))
	case opRead:
		size, code = w.read(req.node(), w.payload()[:req.u32(16)], int64(req.u64(8)))
	case opWrite:
		size, code = w.doWrite(req)
	case opGetxattr:
		size, code = w.doGetxattr(req)
	case opReaddir, opReaddirplus:
		size, code = w.doReaddir(op, req)
	case opOpen:
		req.caller(&w.caller)
		code = w.open(&w.caller, req.node(), req.u32(0), req.u32(4), &w.opened)
		putOpen(w.payload(), &w.opened)
		size = openOutSize
	case opRelease:
		w.release(req.node())
	case opReadlink:
		var target string
		target, code = w.readlink(req.node())
		size = copy(w.payload(), target)
	case opFlush, opAccess, opInterrupt:
		// Interrupts are refused for ever: no handler can be interrupted, and "later" would make the kernel
		// repeat the question as fast as it can (cf. fs/fuse/dev.c fuse_dev_do_write).
		code = fuse.ENOSYS
	case opCreate, opTmpfile, opMknod, opMkdir, opSymlink:
		size, code = w.make(op, req)
	case opUnlink:
		code = w.unlink(req.node(), req.name(0))
	case opRmdir:
		code = w.rmdir(req.node(), req.name(0))
	case opLink:
		w.entry = entry{}
		size, code = w.entryOut(w.link(req.u64(0), req.node(), req.name(8), &w.entry))
	case opRename:
		req.caller(&w.caller)
		from, to := req.names(8)
		code = w.rename(&w.caller, req.node(), from, req.u64(0), to, 0)
	case opRename2:
		req.caller(&w.caller)
		from, to := req.names(16)
		code = w.rename(&w.caller, req.node(), from, req.u64(0), to, req.u32(8))
	default:
		return 0, 0, false
	}
	return size, code, true
}

func (w *worker) entryOut(code fuse.Status) (int, fuse.Status) {
	if code.Ok() {
		w.putEntry(w.payload(), &w.entry)
	}
	return entryOutSize, code
}

func (w *worker) attrOut(code fuse.Status) (int, fuse.Status) {
	if code.Ok() {
		w.putAttrOut(w.payload(), &w.attrs)
	}
	return attrOutSize, code
}

func (w *worker) doWrite(req request) (int, fuse.Status) {
	data := req[inHeaderSize+writeInSize:]
	if size := req.u32(16); int(size) < len(data) {
		data = data[:size]
	}
	n, code := w.write(req.node(), data, int64(req.u64(8)), req.u32(20))
	order.PutUint64(w.payload(), uint64(uint32(n)))
	return 8, code
}

func (w *worker) doGetxattr(req request) (int, fuse.Status) {
	size := req.u32(0)
	n, code := w.getxattr(req.node(), req.xattrName(), w.payload()[:size])
	if size == 0 {
		order.PutUint64(w.payload(), 0)
		order.PutUint32(w.payload(), uint32(n))
		n = 8
	}
	return n, code
}

func (w *worker) doReaddir(op uint32, req request) (int, fuse.Status) {
	if w.scratch == nil {
		w.scratch = make([]union.Dirent, scratchLen)
	}
	off, size := req.u64(8), int(req.u32(16))
	list := fuse.NewDirEntryList(w.payload()[:size], off)
	var code fuse.Status
	if op == opReaddir {
		code = w.readdir(req.node(), off, size, w.scratch, list)
	} else {
		code = w.readdirplus(req.node(), off, req.pid(), size, w.scratch, list)
	}
	clear(w.scratch) // names are not kept alive
	return len(list.Bytes()), code
}

// make handles the requests that may carry supplementary groups.
func (w *worker) make(op uint32, req request) (int, fuse.Status) {
	req.caller(&w.caller)
	rest, groups := splitExt(req, req.extLen(), w.groups[:0])
	w.caller.Groups = groups
	req = rest
	w.entry = entry{}
	var code fuse.Status
	switch op {
	case opMknod:
		w.caller.Umask = req.u32(8) & 0o777
		code = w.mknod(&w.caller, req.node(), req.name(16), req.u32(0), req.u32(4), &w.entry)
	case opMkdir:
		w.caller.Umask = req.u32(4) & 0o777
		code = w.mkdir(&w.caller, req.node(), req.name(8), req.u32(0), &w.entry)
	case opSymlink:
		name, target := req.names(0)
		code = w.symlink(&w.caller, req.node(), name, target, &w.entry)
	default:
		return w.makeOpen(op, req)
	}
	return w.entryOut(code)
}

func (w *worker) makeOpen(op uint32, req request) (int, fuse.Status) {
	w.caller.Umask = req.u32(8) & 0o777
	w.create = fuse.CreateIn{Flags: req.u32(0), Mode: req.u32(4), Umask: req.u32(8), OpenFlags: req.u32(12)}
	var name string
	if op == opCreate {
		if name = req.name(16); name == "" {
			return 0, fuse.Status(unix.EINVAL)
		}
	}
	code := w.FS.create(&w.caller, req.node(), name, &w.create, &w.entry, &w.opened)
	if code.Ok() {
		w.putEntry(w.payload(), &w.entry)
		putOpen(w.payload()[entryOutSize:], &w.opened)
	}
	return entryOutSize + openOutSize, code
}
