// Package kv is the database below plyfs's metadata: ordered keys and values in a directory, kept by badger. It is the only
// package that imports badger, and knows nothing of what is stored.
//
// There are three ways to open a database, each a Profile. A Builder fills a new one, as fast as it can and without
// syncing; Seal then closes it, syncs it and writes a seal; from then on it is immutable, and any number of
// processes open it as Readers. Durable is for a database that is read and written by one process for ever: each
// committed transaction is synced.
//
// # The seal
//
// The database library takes what it finds for granted: on damaged files it may end the process, or fault in a mapping. A
// database that a mount opens on its way up must not do that. The seal, a text file in the directory, names every
// other file with its size and checksum; of value logs only the header is in it, since values carry checksums of their own
// that are compared whenever one is read. What does not match its seal is never given to the library:
//
//	nothing of a database, or files that no database has   ErrForeign
//	no seal: its builder died, or lives                     ErrUnclean
//	another version of the schema, the seal, the library    ErrVersion
//	anything else that does not match                       ErrDamaged
//
// Where the process or the machine has reached a limit, nothing is known of the database: ErrRefused.
//
// A file that is truncated, or cannot be read, while it is mapped, gives ErrDamaged for the key that wanted it; after that
// the database is given up rather than closed, since the library may be left with locks held.
//
// # Versions
//
// The version of the schema belongs to who stores: it stands in the seal and in badger's manifest. The key tables are in the
// package docs of those who store: metadata/indexdb for a stack index, layerdb for layers.
//
// # Concurrency
//
// A DB is safe for concurrent use; a Txn and a Batch belong to one goroutine. A directory has one Builder or Durable at a
// time (flock by the library; the error wraps ErrLocked). Sealed databases take no lock.
package kv
