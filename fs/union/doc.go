// Package union is the merged view: it owns the tree of nodes that a mount shows, finds out what each name stands for in
// the layers, and decides when something is copied up. It knows no FUSE type; a front end hands it nodes and names and
// gets attributes, data and errors that carry a syscall.Errno.
//
// # Locks
//
// Whoever holds a lock takes only locks that are indented below it. Where two stand at the same depth, neither is taken with the
// other held. RW locks are held for reading unless the line says who writes.
//
//	Union.sync.run                     one background sync at a time
//	  quota.sweeping                   one goroutine at a time settles all ledgers
//	    quota.running (RW)             held by each operation that changes what the upper takes up; written by a recount
//	      Union.renameMu (RW)          which directory lies in which; written by a rename or removal of a directory
//	        dirState.mu                one directory's names and listing; of two the ancestor's first, else by inode number
//	          Union.moving (RW)        the names of nodes that are no directories, many nodes to a lock (see steady); written by
//	                                   what changes these names; of two by index
//	            Node.copyMu            where a node's data and attributes are: lower, upper, or in an upper object without a name
//	              Union.treeMu         links, children, references, the table of hard-linked inodes
//	              Union.sync.mu        the files that wait for the background sync
//	                cow.Work.mu        what the work directory makes at the first need
//	              ledger.mu            held while one upper object is looked at
//	                quota.mu           the account
//	              layer.Cache.mu       descriptors
//
// Any of them may be left out on the way down. With none of them held a goroutine waits for the copy-up of a node that another
// one has begun (reworked.inflight), and for a recount (quota.finding): a process waits for a copy-up only if it wants the same
// file. Data is copied, and files are synced, outside of them too, but for sync.run and, in a union with a quota, running: the
// copy is staged, marked in flight, and published under the locks.
//
// The methods of StackIndex and Observer.Corrected are called with locks held, down to copyMu; Observer.CopiedUp and
// Observer.Moved with none.
//
// # Life of a node
//
// A node is one inode of the mount; hard links share it. Lookup and the calls that create return it with a reference
// that the caller gives back with Forget. A node holds a reference to the parent of each of its links. When the last
// reference goes, the node leaves the tree and its descriptors are closed; nothing else remembers it, so that memory is
// bounded by what the front end holds.
package union
