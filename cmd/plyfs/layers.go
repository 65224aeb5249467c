package main

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/fs/mountopt"
)

// maxLowers is the kernel's limit (cf. overlayfs params.h OVL_MAX_STACK): what plyfs mounts, the kernel shall too.
const maxLowers = 500

// stack is the open layers of a mount, in the order of the options.
type stack struct {
	lowers      []*layer.Layer
	upper, work *layer.Layer // nil where the mount has none
	// readOnly says that the upper is only read; work is then for the hard-link index in it.
	readOnly bool
}

// openStack opens the layers that o names, as directories that stay open, so that no path is resolved through the mount
// later. On error nothing stays open.
func openStack(o mountopt.Options) (s *stack, err error) {
	switch n := len(o.LowerDirs); {
	case n == 0:
		return nil, faultf(exitUsage, "no lowerdir given; add -o lowerdir=DIR[:DIR]..., the topmost first")
	case n > maxLowers:
		return nil, faultf(exitUsage, "%d lower directories given, the limit is %d; merge some of them", n, maxLowers)
	}
	if o.UpperDir != "" && o.WorkDir == "" && !o.ReadOnly {
		return nil, faultf(exitUsage, "upperdir=%s has no workdir; add workdir=DIR, an empty directory on the same file system, or ro",
			o.UpperDir)
	}
	s = &stack{}
	defer func() {
		if err != nil {
			s.close()
			s = nil
		}
	}()
	from := &layer.Opener{}
	for _, dir := range o.LowerDirs {
		l, err := openLayer(from, "lowerdir", dir)
		if err != nil {
			return s, err
		}
		s.lowers = append(s.lowers, l)
	}
	if o.UpperDir == "" {
		return s, nil // a workdir alone is of no use, nor an error (cf. overlayfs params.c ovl_fs_params_verify)
	}
	if s.upper, err = openLayer(from, "upperdir", o.UpperDir); err != nil {
		return s, err
	}
	if !o.ReadOnly {
		s.work, err = openLayer(from, "workdir", o.WorkDir)
		return s, err
	}
	s.readOnly = true
	if o.WorkDir != "" {
		// A mount that only reads takes hard links from the index there; it does without if there is none.
		if s.work, err = openLayer(from, "workdir", o.WorkDir); err != nil {
			s.work = nil
		}
	}
	return s, nil
}

func (s *stack) close() {
	for _, l := range append([]*layer.Layer{s.upper, s.work}, s.lowers...) {
		if l != nil {
			_ = l.Close()
		}
	}
}

// openLayer opens one layer and says what to do where that fails.
func openLayer(from *layer.Opener, option, dir string) (*layer.Layer, error) {
	l, err := from.Open(dir)
	if err == nil {
		return l, nil
	}
	var way string
	code := exitMount
	switch {
	case errors.Is(err, unix.ENOENT) && option == "lowerdir" && strings.HasPrefix(dir, "//"):
		way = "plugins for lower layers are not supported, give a directory"
	case errors.Is(err, unix.ENOENT):
		way = "create the directory, or correct the path"
	case errors.Is(err, unix.ENOTDIR):
		way = "give a directory"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		code = exitUsage
		way = "the mounting user needs search permission on the directory and all above it"
	case errors.Is(err, unix.ELOOP):
		way = "the path runs through a circle of symbolic links"
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		code = exitSystem
		way = "raise the limit of open files (ulimit -n)"
	case errors.Is(err, unix.ENOTCONN):
		way = "a FUSE mount there lost its server; unmount it"
	default:
		way = "make sure that it can be read"
	}
	return nil, faultf(code, "%s=%s: %s; %s", option, dir, reason(err), way)
}

// reason is the system's word for what went wrong, without the paths that a message has already.
func reason(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return fmt.Sprint(err)
}
