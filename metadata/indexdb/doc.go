// Package indexdb keeps stack indexes (see package metadata) on disk: one database each, in a directory that all mounts of a
// user share.
//
// A Cache is that directory; a Builder fills a new index in a temporary directory and publishes it by a rename; an Index
// answers. Whatever is wrong with one (damage, another version, a crash of its builder) is answered with ErrNotBuilt or
// metadata.ErrDamaged, and its user asks the layers.
//
// # What is on disk
//
//	DIR/                 mode 0700, owned by its user
//	    .lock            flock: who publishes, sets aside or removes
//	    NAME/            one index; NAME is metadata.Stack.Name; flock shared: a process answers from it
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
//	m 'stack'          the Stack, as Stack.Encode writes it
//	m 'info'           what Index.Info tells, as metadata.EncodeInfo writes it
//	d VIEW             the record of a merged directory, as metadata.Record.Encode writes it
//	h VIEW             the digests of its regular files, as metadata.EncodeDigests writes them
//
// VIEW is the directory's path in the merged view of the lowers, "" for the root. A path longer than metadata.MaxView is not
// recorded. Every value carries a checksum of its own. metadata.SchemaVersion names all of this; a database of another version is
// set aside and built anew.
//
// # Locks
//
// Builder.mu and Index.mu are leaves; none is held across another. The flocks: .lock before that of an index.
package indexdb
