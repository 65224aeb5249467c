// Package union is the merged view: it owns the tree of nodes that a mount shows, finds out what each name stands for in
// the layers, and decides when something is copied up. It knows no FUSE type; a front end hands it nodes and names and
// gets attributes, data and errors that carry a syscall.Errno.
//
// # Locks
//
// In the order in which they are taken; a lock is never taken while one below it is held:
//
//	in-flight copy-up of a node         awaited with no lock held, and so is a recount that is under way
//	quota.sweeping, quota.running (RW)  the account of an upper with a quota; running is written by a recount
//	  Union.renameMu (RW)               topology of directories; written by a rename or removal of a directory
//	    dirState.mu                     one directory's names and listing; of two, the ancestor first, else by number
//	      Union.moving (RW)             the names of what is no directory, many nodes to a lock; of two, by place
//	      Node.copyMu                   where a node's data and attributes are: lower, upper or nowhere any more
//	        Union.treeMu                links, children, references, the table of hard-linked inodes
//	          layer.Cache.mu            descriptors
//	          ledger.mu, quota.mu       what the upper takes up; the second one innermost
//
// Data is copied, and files are synced, with none of them held: the copy is staged, marked in flight, and published
// under the locks. A process waits for a copy-up only if it wants the same file.
//
// # Life of a node
//
// A node is one inode of the mount; hard links share it. Lookup and the calls that create return it with a reference
// that the caller gives back with Forget. A node holds a reference to the parent of each of its links. When the last
// reference goes, the node leaves the tree and its descriptors are closed; nothing else remembers it, so that memory is
// bounded by what the front end holds.
package union
