package kv

import (
	"log/slog"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// Profile says what a database is opened for.
type Profile int

// The profiles.
const (
	// Reader opens a sealed database. It writes nothing and works in a directory that is read-only. Tables and value log are
	// mapped, so that processes share their pages, and nothing is cached beside them.
	Reader Profile = iota
	// Builder makes a database in an empty directory. What is written may be lost until Seal.
	Builder
	// Durable opens a database for reading and writing, or makes one; transactions are synced before they are visible.
	Durable
)

// Options says how a database is opened.
type Options struct {
	Profile Profile
	// Schema is the version of what is stored; a database of another is refused with ErrVersion.
	Schema uint16
	// Name is what messages call the database; empty for its directory.
	Name string
	// Log takes what the library has to say, all of it at level debug: what matters comes back as an error. Nil discards.
	Log *slog.Logger
}

// Sizes of the profiles, in bytes. The tables of an index hold little more than keys, so small memtables do; what they cost
// is measured by the benchmarks of package indexdb.
const (
	builderMemTable  = 16 << 20
	builderValueLog  = 256 << 20
	builderThreshold = 64
	durableMemTable  = 8 << 20
	durableValueLog  = 64 << 20
	durableThreshold = 1 << 10
)

// library returns badger's options for the directory.
func (o Options) library(dir string) badger.Options {
	b := badger.DefaultOptions(dir).
		WithLogger(bridge{o.Log}).
		WithExternalMagic(o.Schema).
		WithMetricsEnabled(false).
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithNumMemtables(2).
		WithNumLevelZeroTables(4).
		WithNumLevelZeroTablesStall(8).
		WithNumCompactors(2)
	switch o.Profile {
	case Reader:
		// The seal stands for the tables; values have nobody else to check their headers.
		return b.WithReadOnly(true).
			WithBypassLockGuard(true).
			WithChecksumVerificationMode(options.NoVerification).
			WithVerifyValueChecksum(true).
			WithMemTableSize(builderMemTable).
			WithValueThreshold(builderThreshold).
			WithValueLogFileSize(builderValueLog)
	case Builder:
		// Values go to the value log: they are written once, and the tables stay small enough to be checked at every open.
		return b.WithSyncWrites(false).
			WithDetectConflicts(false).
			WithMemTableSize(builderMemTable).
			WithValueThreshold(builderThreshold).
			WithValueLogFileSize(builderValueLog)
	default:
		return b.WithSyncWrites(true).
			WithChecksumVerificationMode(options.OnTableAndBlockRead).
			WithVerifyValueChecksum(true).
			WithMemTableSize(durableMemTable).
			WithValueThreshold(durableThreshold).
			WithValueLogFileSize(durableValueLog)
	}
}
