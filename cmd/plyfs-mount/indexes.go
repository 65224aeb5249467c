package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"plyfs/fs/mountopt"
	"plyfs/fs/server"
	"plyfs/fs/union"
	"plyfs/internal/sibling"
)

// indexes leaves mounts whose layers have an index to plyfs.
type indexes struct{}

// Open implements server.Indexes. It looks only whether there is an index of that name: whether it is the right one, plyfs finds out.
func (indexes) Open(dir string, _ mountopt.Options, u *union.Options, _ *slog.Logger) (func() error, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, server.ErrNoIndex
	}
	stack, err := union.StackOf(u)
	if err != nil {
		return nil, err
	}
	index := filepath.Join(dir, stack.Name())
	if _, err := os.Stat(index); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, server.ErrNoIndex
		}
		return nil, fmt.Errorf("index: %w", err)
	}
	program, err := other()
	if err != nil {
		return nil, err
	}
	return nil, server.HandOver(program)
}

// other finds plyfs. A link of that name to this program would run it again and again.
func other() (string, error) {
	program, err := sibling.Find(server.NamePlyfs)
	if err != nil {
		return "", err
	}
	self, err := os.Stat(server.SelfPath())
	if err != nil {
		return "", err
	}
	if found, err := os.Stat(program); err != nil || os.SameFile(self, found) {
		return "", errors.Join(fmt.Errorf("%s is not the program plyfs", program), err)
	}
	return program, nil
}

// Builder implements server.Indexes.
func (indexes) Builder() (string, error) { return other() }
