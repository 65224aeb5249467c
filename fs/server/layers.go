package server

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/fs/mountopt"
	"plyfs/internal/exit"
)

// MaxLowers is the kernel's limit (cf. overlayfs params.h OVL_MAX_STACK): what plyfs mounts, the kernel shall too.
const MaxLowers = 500

// Stack is the open layers of a mount, in the order of the options.
type Stack struct {
	Lowers      []*layer.Layer
	Upper, Work *layer.Layer // nil where the mount has none
	// readOnly says that the upper is only read; work is then for the hard-link index in it.
	readOnly bool
}

// OpenStack opens the layers that o names, as directories that stay open, so that no path is resolved through the mount
// later. On error nothing stays open.
func OpenStack(o mountopt.Options) (s *Stack, err error) {
	switch n := len(o.LowerDirs); {
	case n == 0:
		return nil, exit.Faultf(exit.Usage, "no lowerdir given; add -o lowerdir=DIR[:DIR]..., the topmost first")
	case n > MaxLowers:
		return nil, exit.Faultf(exit.Usage, "%d lower directories given, the limit is %d; merge some of them", n, MaxLowers)
	}
	if o.UpperDir != "" && o.WorkDir == "" && !o.ReadOnly {
		return nil, exit.Faultf(exit.Usage, "upperdir=%s has no workdir; add workdir=DIR, an empty directory on the same file system, or ro",
			o.UpperDir)
	}
	s = &Stack{}
	defer func() {
		if err != nil {
			s.Close()
			s = nil
		}
	}()
	from := &layer.Opener{}
	for _, dir := range o.LowerDirs {
		l, err := OpenLayer(from, "lowerdir", dir)
		if err != nil {
			return s, err
		}
		s.Lowers = append(s.Lowers, l)
	}
	if o.UpperDir == "" {
		return s, nil // a workdir alone is of no use, nor an error (cf. overlayfs params.c ovl_fs_params_verify)
	}
	if s.Upper, err = OpenLayer(from, "upperdir", o.UpperDir); err != nil {
		return s, err
	}
	if !o.ReadOnly {
		s.Work, err = OpenLayer(from, "workdir", o.WorkDir)
		return s, err
	}
	s.readOnly = true
	if o.WorkDir != "" {
		// A mount that only reads takes hard links from the index there; it does without if there is none.
		if s.Work, err = OpenLayer(from, "workdir", o.WorkDir); err != nil {
			s.Work = nil
		}
	}
	return s, nil
}

// Close closes all layers. Nothing may use them any more.
func (s *Stack) Close() {
	for _, l := range append([]*layer.Layer{s.Upper, s.Work}, s.Lowers...) {
		if l != nil {
			_ = l.Close()
		}
	}
}

// OpenLayer opens one layer and says what to do where that fails.
func OpenLayer(from *layer.Opener, option, dir string) (*layer.Layer, error) {
	l, err := from.Open(dir)
	if err == nil {
		return l, nil
	}
	var way string
	code := exit.Mount
	switch {
	case errors.Is(err, unix.ENOENT) && option == "lowerdir" && strings.HasPrefix(dir, "//"):
		way = "plugins for lower layers are not supported, give a directory"
	case errors.Is(err, unix.ENOENT):
		way = "create the directory, or correct the path"
	case errors.Is(err, unix.ENOTDIR):
		way = "give a directory"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		code = exit.Usage
		way = "the mounting user needs search permission on the directory and all above it"
	case errors.Is(err, unix.ELOOP):
		way = "the path runs through a circle of symbolic links"
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		code = exit.System
		way = "raise the limit of open files (ulimit -n)"
	case errors.Is(err, unix.ENOTCONN):
		way = "a FUSE mount there lost its server; unmount it"
	default:
		way = "make sure that it can be read"
	}
	return nil, exit.Faultf(code, "%s=%s: %s; %s", option, dir, exit.Reason(err), way)
}
