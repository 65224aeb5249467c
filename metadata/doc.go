// Package metadata is the stack index: what the merged view of a stack of read-only lowers shows, one record per merged
// directory, computed once and kept in a database that all mounts of that stack share.
//
// A Stack names what is indexed; a Cache is the directory where indexes live, one database each; a Builder fills a new
// one in a temporary directory and publishes it by a rename; an Index answers. Record and Dir are the two sides of the
// codec: a Record is what a builder hands over, a Dir what a reader looks names up in without decoding the rest.
//
// The index is derived: what it says can be found in the layers again. So whatever is wrong with it (damage, another
// version, a crash of its builder) is answered with ErrNotBuilt or ErrDamaged, and its user asks the layers. The package
// knows nothing of layers beyond their names: whether a record still describes them is for its user to find out, who
// says so by Index.MarkStale.
//
// # What is on disk
//
//	DIR/                 mode 0700, owned by its user
//	    .lock            flock: who publishes, sets aside or removes
//	    NAME/            one index; NAME is Stack.Name; flock shared: a process answers from it
//	        db/          the database, see metadata/kv
//	        used         its modification time is the last use
//	        stale        why the index must not be used any more
//	    NAME.bad-1/      the last one that was found damaged, for those who want to know why
//	    .build-RANDOM/   one that is being built; flock exclusive: its builder lives
//	    .old-RANDOM/     one that is being removed
//
// The keys of the database:
//
//	key                value
//	m 'stack'          the Stack, as Stack.encode writes it
//	m 'info'           what Index.Info tells, as encodeInfo writes it
//	d VIEW             the record of a merged directory, as Record.Encode writes it
//	h VIEW             the digests of its regular files, as encodeDigests writes them
//
// VIEW is the directory's path in the merged view of the lowers, "" for the root. A path longer than MaxView is not
// recorded. Every value carries a checksum of its own. SchemaVersion names all of this; a database of another version is
// set aside and built anew.
//
// # Locks
//
// Builder.mu, Index.mu and Cache.mu are leaves; none is held across another. The flocks: .lock before that of an index.
package metadata
