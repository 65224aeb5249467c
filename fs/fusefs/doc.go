// Package fusefs serves a union through FUSE: it owns the /dev/fuse descriptor, node ids, what the kernel may cache,
// and the mapping of errors to errnos. It holds no state of the tree: a node id stands for a [union.Node], a lookup
// count, and in passthrough mode a backing file.
//
// # What the kernel caches
//
// Requests that are not sent are the fastest. Layers never change behind the union's back, so names, absent names,
// attributes, symbolic links, listings and pages are handed out without expiry, unless Config.Timeout says
// otherwise. OPENDIR, FLUSH and ACCESS are answered ENOSYS once, after which the kernel does without them. A change
// made through a request is invalidated by the kernel itself (cf. fs/fuse/dir.c fuse_dir_changed and
// fuse_entry_unlinked; a listing is dropped because that raises the directory's iversion, cf. fs/fuse/readdir.c
// fuse_readdir_cached). Six things it cannot know are told to it by a notification: a write by an unprivileged
// process that cleared set-id bits, an attribute change through the stale id of a file (below), a changed mode
// after an ACL cleared set-gid, the ctime after flags of chattr(1) were set, the ".." in the listing of a directory that was
// moved, and that a listing may be of before and after a change (union.ListingTorn). In passthrough mode it may not cache the
// attributes of a file that was open for reading and writing: what is stored to a mapping of it, which may outlive the
// descriptor, changes them without any request.
//
// # Data modes
//
// In no-open mode OPEN is answered ENOSYS: opening, reading cached data and closing a file costs no request at all.
// Data passes through this process, by node; a copy-up in the middle of a read is invisible. In passthrough mode the
// kernel reads and writes the layers' files itself; that needs root, and two requests for each open and close. One
// mount has one mode, since the kernel never sends OPEN again after it was refused once.
//
// O_TRUNC is left to a separate SETATTR in no-open mode: were FUSE_ATOMIC_O_TRUNC negotiated, the kernel would expect
// an OPEN that it never sends, and the truncation would be lost.
//
// # Stale ids
//
// A kernel inode has one backing file as long as any of its files is open. When a file is copied up while a
// passthrough file of its lower is open, its node therefore gets a second id. The first one goes stale: OPEN on it is
// answered ESTALE, whereupon the kernel looks the path up again and finds the second id. Files that were open keep
// reading the lower, as in the kernel's overlayfs. Attributes of a stale id are never cached.
//
// # Locks
//
// A lock is only taken while no other is held, or one under which it is indented:
//
//	openState.mu         one node id's backing file; never held across a call into the union
//	  shard.mu           lookup counts, and the id of each node (union.Node.Tag), many nodes to a shard
//	    table.mu         free ids, chunks
//	  notifier.mu        ids whose attributes the kernel has to drop
//	fastTransport.mu     which readers there are
//	watchers.mu          who watches; replaced, so that a request reads the list without it
//	Watcher.mu           what one watcher has gathered
//
// None of them is held while a request is read, inside the union, or while its answer is written. The union calls
// Observer.Corrected with locks of its own held, which takes a shard's; nothing here calls the union with a lock held.
package fusefs
