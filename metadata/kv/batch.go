package kv

import (
	"fmt"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"
)

const (
	// batchSize is how many bytes a Batch collects before it writes them.
	batchSize = 8 << 20
	// spaceReserve is what has to be free on the file system beyond what is about to be written: tables and logs are
	// mapped, and where a mapping cannot be backed the process ends.
	spaceReserve = 64 << 20
)

// Batch writes many keys fast and in no particular order. What it wrote is visible at the latest after Flush. It keeps copies in
// one buffer that is used again and again, so that its memory stays the same however much is written. It belongs to
// one goroutine.
type Batch struct {
	db  *DB
	w   *badger.WriteBatch
	buf []byte
	err error // the first one
}

// NewBatch returns an empty batch. It must be ended by Flush or Cancel.
func (db *DB) NewBatch() *Batch { return &Batch{db: db, w: db.b.NewWriteBatch()} }

// Put adds a key with its value, which may be reused at once. It blocks while the batch is written. After an error the batch
// only knows that error.
func (b *Batch) Put(key, value []byte) error {
	if b.err != nil {
		return b.err
	}
	need := len(key) + len(value)
	if len(b.buf)+need > cap(b.buf) {
		if b.err = b.write(need); b.err != nil {
			return b.err
		}
	}
	start := len(b.buf)
	b.buf = append(append(b.buf, key...), value...)
	mid := start + len(key)
	if err := b.w.Set(b.buf[start:mid:mid], b.buf[mid:len(b.buf):len(b.buf)]); err != nil {
		b.err = fmt.Errorf("database %s: key %q: %w", b.db.name, key, classify(err))
	}
	return b.err
}

// write writes what was collected and makes room for so many bytes more.
func (b *Batch) write(room int) error {
	if err := b.end(); err != nil {
		return err
	}
	b.w = b.db.b.NewWriteBatch()
	if size := max(batchSize, room); size > cap(b.buf) {
		b.buf = make([]byte, 0, size)
	}
	b.buf = b.buf[:0]
	return b.checkSpace(max(batchSize, room))
}

func (b *Batch) end() error {
	if err := b.w.Flush(); err != nil {
		return fmt.Errorf("database %s: write: %w", b.db.name, classify(err))
	}
	return nil
}

func (b *Batch) checkSpace(want int) error {
	var st unix.Statfs_t
	if err := unix.Statfs(b.db.dir, &st); err != nil {
		return fmt.Errorf("database %s: statfs: %w", b.db.name, err)
	}
	if free := st.Bavail * uint64(st.Bsize); free < uint64(want)+spaceReserve {
		return fmt.Errorf("database %s: %w: %d MiB free, %d MiB wanted",
			b.db.name, ErrNoSpace, free>>20, (uint64(want)+spaceReserve)>>20)
	}
	return nil
}

// Flush writes what is left and ends the batch.
func (b *Batch) Flush() error {
	if b.err != nil {
		b.Cancel()
		return b.err
	}
	return b.end()
}

// Cancel ends the batch; what is not written yet is dropped.
func (b *Batch) Cancel() { b.w.Cancel() }
