package plyfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/drivers"
	"plyfs/drivers/internal/overlaystore"
)

// endWait bounds how long Put waits for a server whose mount is gone, as its context's deadline does. It is longer only if a copy
// of the mount lives on in another mount namespace: then the server goes with that.
const endWait = 30 * time.Second

// dyingWait bounds how long a mount waits for the layer's last server. A process that is killed keeps the upper for a moment after its
// mount is dead. Longer than that goes on only one that serves copies of its mount.
const dyingWait = time.Second

// mounter starts servers.
type mounter struct {
	opts    options
	program string
	// helper is the name of the program that others run to mount.
	helper  string
	log     *slog.Logger
	servers *servers
	pool    *pool
	// unanswered has a chan struct{} for each target whose server has not answered settle yet.
	unanswered sync.Map
}

func newMounter(opts options, program, home, run string, log *slog.Logger) (*mounter, error) {
	s, err := openServers(run)
	if err != nil {
		return nil, err
	}
	return &mounter{opts: opts, program: program, helper: helperName(), log: log, servers: s, pool: &pool{program: program, dir: home}}, nil
}

// helperName is what others shall run to mount: the program that only mounts and starts quicker, or plyfs where that is not installed.
func helperName() string {
	const mount = Name + "-mount"
	if _, err := exec.LookPath(mount); err == nil {
		return mount
	}
	return Name
}

// Plan implements overlaystore.Mounter: mount.fuse3 starts the program for this type, as containerd does.
func (m *mounter) Plan(k overlaystore.Stack) drivers.Mount {
	return drivers.Mount{Type: "fuse3." + m.helper, Source: Name, Options: splitOptions(m.opts.mountOptions(k, k.Path))}
}

// splitOptions takes an option string apart at its commas, but for those in quotes and behind a backslash.
func splitOptions(s string) []string {
	var list []string
	var one strings.Builder
	quoted, escaped := false, false
	for _, c := range []byte(s) {
		if c == ',' && !quoted && !escaped {
			list = append(list, one.String())
			one.Reset()
			continue
		}
		if c == '"' && !escaped {
			quoted = !quoted
		}
		escaped = c == '\\' && !escaped
		one.WriteByte(c)
	}
	return append(list, one.String())
}

// Mount implements overlaystore.Mounter. Layers are given relative to the home, which is the program's working
// directory.
func (m *mounter) Mount(ctx context.Context, k overlaystore.Stack, target string) error {
	if k.Alone {
		if err := m.waitAlone(ctx, k); err != nil {
			return err
		}
	}
	opts := m.opts.mountOptions(k, func(p string) string { return p })
	var err error
	if isOwn(m.program) {
		err = m.serve(ctx, k, opts, target)
	} else {
		err = m.runProgram(ctx, k.Home, opts, target)
	}
	if err == nil {
		return nil
	}
	if drivers.IsMountPoint(target) {
		err = errors.Join(err, overlaystore.Detach(target))
	}
	return err
}

// waitAlone waits until no server writes to the stack's upper, if it may be the layer's own last server that does. Otherwise, and after
// dyingWait, the error wraps drivers.ErrInUse.
func (m *mounter) waitAlone(ctx context.Context, k overlaystore.Stack) error {
	err := notServed(k)
	if !errors.Is(err, drivers.ErrInUse) {
		return err
	}
	dying, cancel := context.WithTimeout(ctx, dyingWait)
	defer cancel()
	if werr := m.servers.wait(dying, k.ID); werr != nil {
		return errors.Join(ctx.Err(), err, werr)
	}
	return notServed(k)
}

// notServed returns an error that wraps drivers.ErrInUse if a server writes to the stack's upper.
func notServed(k overlaystore.Stack) error {
	if k.Work == "" {
		return nil
	}
	dir, err := os.Open(filepath.Join(k.Path(k.Work), cow.StageDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if cow.InUse(int(dir.Fd())) {
		return fmt.Errorf("another mount of %s is served: %w", k.Path(k.Upper), drivers.ErrInUse)
	}
	return nil
}

// serve starts a server and waits until it serves.
func (m *mounter) serve(ctx context.Context, k overlaystore.Stack, opts, target string) error {
	p, err := m.pool.start(ctx, []string{Name, "mount", "-o", opts, Name, target})
	if err != nil {
		return err
	}
	s := &service{process: p, over: make(chan struct{})}
	err = m.servers.add(k.ID, s)
	go m.watch(k.ID, s)
	if err != nil {
		err = errors.Join(err, s.kill())
	}
	return err
}

// watch waits for the end of a mount, and lets its server serve another one.
func (m *mounter) watch(id string, s *service) {
	defer close(s.over)
	again := s.waitForEnd()
	m.servers.ended(id, s)
	if again {
		m.pool.keep(s.process)
	}
}

// runProgram runs another mount program, as containers/storage does: its success says that the mount serves.
func (m *mounter) runProgram(ctx context.Context, home, opts, target string) error {
	cmd := exec.CommandContext(ctx, m.program, "-o", opts, target)
	cmd.Dir = home
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", m.program, err, strings.TrimSpace(stderr.String()))
	}
	if !drivers.IsMountPoint(target) {
		return fmt.Errorf("%s succeeded, and nothing is mounted on %s: %w", m.program, target, drivers.ErrPrerequisites)
	}
	return nil
}

// Flush implements overlaystore.Mounter: what was written through mappings is with the kernel until it is wanted. It is
// sent to the server, and nothing is synced; the kernel does not wait for the answers, so the last of it may arrive a
// moment later (cf. fuse file.c, mapping_set_no_data_integrity).
func (m *mounter) Flush(target string) error {
	fd, err := unix.Open(target, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: target, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.Syncfs(fd); err != nil {
		return &os.PathError{Op: "syncfs", Path: target, Err: err}
	}
	return nil
}

// Unmount implements overlaystore.Mounter.
func (m *mounter) Unmount(ctx context.Context, id, target string) error {
	if err := m.settle(ctx, target); err != nil {
		return err
	}
	if err := overlaystore.Unmount(ctx, target); err != nil {
		return err
	}
	// The mount is gone: from here on there is no way back, and the caller's loss of interest does not count.
	wait := endWait
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(deadline))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wait)
	defer cancel()
	if err := m.servers.wait(ctx, id); err != nil {
		m.log.Warn("the server of a layer goes on after the unmount", "layer", id, "error", err)
	}
	return nil
}
