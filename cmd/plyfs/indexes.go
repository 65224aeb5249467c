package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"plyfs/fs/mountopt"
	"plyfs/fs/server"
	"plyfs/fs/union"
	"plyfs/metadata/indexdb"
)

// indexes gives mounts their stack indexes.
type indexes struct{}

// Open implements server.Indexes.
func (indexes) Open(dir string, o mountopt.Options, u *union.Options, log *slog.Logger) (release func() error, err error) {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, server.ErrNoIndex
	}
	cache, err := indexdb.OpenCache(dir, log)
	if err != nil {
		return nil, err
	}
	index, err := openIndex(cache, u)
	if err != nil {
		if errors.Is(err, indexdb.ErrNotBuilt) || errors.Is(err, indexdb.ErrStale) {
			err = fmt.Errorf("%w: %w", server.ErrNoIndex, err)
		}
		return nil, errors.Join(err, cache.Close())
	}
	u.StackIndex, u.VerifyIndex = index, o.Index == mountopt.IndexVerify
	return func() error { return errors.Join(index.Close(), cache.Close()) }, nil
}

func openIndex(cache *indexdb.Cache, u *union.Options) (*indexdb.Index, error) {
	stack, err := union.StackOf(u)
	if err != nil {
		return nil, err
	}
	return cache.Open(stack)
}

// Builder implements server.Indexes.
func (indexes) Builder() (string, error) { return server.SelfPath(), nil }
