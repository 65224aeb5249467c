package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"plyfs/fs/server"
	"plyfs/internal/control"
)

// rediscover is how often top looks for new mounts.
const rediscover = 2 * time.Second

// topCommand is plyfs top.
func topCommand() *cli.Command {
	return &cli.Command{
		Name: "top", Usage: "show live what the mounts of plyfs do",
		ArgsUsage: "[TARGET]...",
		Description: "Requests a second of each mount by kind, what is copied up and written, and which processes change which files. " +
			"While it runs, changing requests cost some microseconds more. On a terminal, q ends it; elsewhere it prints a table " +
			"each interval. With TARGETs, only of those mounts. In data=passthrough writes go past plyfs: files opened to be written " +
			"are shown instead.",
		Flags: []cli.Flag{
			allFlag(),
			&cli.DurationFlag{Name: "interval", Aliases: []string{"d"}, Value: 2 * time.Second, Usage: "`TIME` between two looks, such as 500ms"},
			&cli.BoolFlag{Name: "once", Usage: "print one look, at what happens within one interval, and end"},
			&cli.BoolFlag{Name: "json", Usage: "print a line of JSON for each mount and interval"},
		},
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return faultf(exitUsage, "%v; see plyfs top --help", err)
		},
		Action: func(c *cli.Context) error {
			for _, a := range c.Args().Slice() {
				if strings.HasPrefix(a, "-") {
					return faultf(exitUsage, "flag %s stands behind a target; flags come first, and ./%s is a directory of that name", a, a)
				}
			}
			interval := c.Duration("interval")
			if interval < 100*time.Millisecond || interval > time.Hour {
				return faultf(exitUsage, "--interval %v: give 100ms to 1h", interval)
			}
			ctx, stop := signal.NotifyContext(c.Context, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
			defer stop()
			t := &top{
				scope: scopeOf(c), interval: interval, targets: c.Args().Slice(), once: c.Bool("once"), json: c.Bool("json"),
				mounts: make(map[string]*topMount), silent: make(map[string]time.Time),
			}
			return t.run(ctx, c.App.Writer)
		},
	}
}

// top watches mounts.
type top struct {
	scope    control.Scope
	interval time.Duration
	targets  []string
	// once has one frame shown, json has it shown as JSON.
	once, json bool

	all sync.WaitGroup
	mu  sync.Mutex
	// mounts are those watched, by the path of their socket. Guarded by mu, with what is in them.
	mounts map[string]*topMount
	// silent is when a socket was asked in vain. Guarded by mu.
	silent map[string]time.Time
}

// askAgain is how long a server that did not answer is left alone: nothing is shown while servers are asked.
const askAgain = 10 * time.Second

// topMount is a mount that is watched.
type topMount struct {
	target string
	owner  control.Owner
	// last is the latest sample, before the one that the latest frame showed; a rate needs both.
	last, before *control.Sample
	// shown says that last was printed.
	shown  bool
	cancel context.CancelFunc
}

// add takes a sample over. One before it that no frame has shown is merged into it. Precondition: top.mu is held.
func (m *topMount) add(s *control.Sample) {
	if m.before != nil && !m.shown {
		s.Activity = append(s.Activity, m.last.Activity...)
		s.Dropped += m.last.Dropped
	} else {
		m.before = m.last
	}
	m.last, m.shown = s, false
}

// run shows frames until ctx ends, or one.
func (t *top) run(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer t.all.Wait()
	defer cancel()
	if err := t.discover(ctx); err != nil {
		return err
	}
	show := printFrame
	if t.json {
		show = printFrameJSON
	}
	if t.once {
		if err := t.missing(); err != nil {
			return err
		}
		if !t.settle(ctx) {
			return nil
		}
		return show(out, t.frame())
	}
	var screen *terminal
	if f, ok := out.(*os.File); ok && !t.json {
		var err error
		if screen, err = openTerminal(f); err != nil && !errors.Is(err, unix.ENOTTY) {
			return faultf(exitSystem, "terminal: %v", err)
		}
	}
	if screen != nil {
		defer screen.close()
		go screen.awaitQuit(cancel)
		show = screen.show
	}
	return t.loop(ctx, out, show)
}

// loop shows a frame each interval.
func (t *top) loop(ctx context.Context, out io.Writer, show func(io.Writer, frame) error) error {
	frames, look := time.NewTicker(t.interval), time.NewTicker(rediscover)
	defer frames.Stop()
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			if err := t.discover(ctx); err != nil {
				return err
			}
		case <-frames.C:
			if err := show(out, t.frame()); err != nil {
				return err
			}
		}
	}
}

// discover begins to watch mounts that are new.
func (t *top) discover(ctx context.Context) error {
	sockets, err := control.List(t.scope)
	if err != nil {
		return faultf(exitSystem, "find mounts: %v", err)
	}
	t.mu.Lock()
	sockets = slices.DeleteFunc(sockets, func(s control.Socket) bool {
		_, known := t.mounts[s.Path]
		return known || time.Since(t.silent[s.Path]) < askAgain
	})
	t.mu.Unlock()
	asked, cancel := context.WithTimeout(ctx, min(t.interval, rediscover))
	defer cancel()
	all := make([]control.Status, len(sockets))
	failed := make([]error, len(sockets))
	control.Each(sockets, func(i int, s control.Socket) { all[i], failed[i] = s.Status(asked) })
	owners := control.NewOwners()
	for i, s := range sockets {
		st, err := all[i], failed[i]
		if err != nil {
			t.mu.Lock()
			t.silent[s.Path] = time.Now()
			t.mu.Unlock()
			continue
		}
		if !t.wanted(st) {
			continue
		}
		watched, cancel := context.WithCancel(ctx)
		m := &topMount{target: st.Target, owner: owners.Find(st.Target, st.Upper, s.UID), cancel: cancel}
		t.mu.Lock()
		t.mounts[s.Path] = m
		t.mu.Unlock()
		t.all.Go(func() {
			defer cancel()
			_ = s.Watch(watched, t.interval, func(sample control.Sample) error { // it ends with the mount
				t.mu.Lock()
				defer t.mu.Unlock()
				m.add(&sample)
				return nil
			})
			t.mu.Lock()
			defer t.mu.Unlock()
			delete(t.mounts, s.Path)
		})
	}
	return nil
}

func (t *top) wanted(s control.Status) bool {
	if len(t.targets) == 0 {
		return true
	}
	return slices.ContainsFunc(t.targets, func(target string) bool {
		abs, err := server.Resolve(target)
		return err == nil && abs == s.Target
	})
}

// missing is an error if no mount was found at one of the targets.
func (t *top) missing() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, target := range t.targets {
		abs, err := server.Resolve(target)
		if err != nil {
			return faultf(exitUsage, "%s: %v", target, err)
		}
		found := false
		for _, m := range t.mounts {
			found = found || m.target == abs
		}
		if !found {
			return faultf(exitUsage, "%s: no mount of plyfs there answers; plyfs ps lists the mounts", target)
		}
	}
	return nil
}

// settle waits until each mount has told twice, or is gone; false if ctx ended before.
func (t *top) settle(ctx context.Context) bool {
	deadline := time.NewTimer(t.interval + 2*time.Second)
	defer deadline.Stop()
	check := time.NewTicker(20 * time.Millisecond)
	defer check.Stop()
	for {
		ready := true
		t.mu.Lock()
		for _, m := range t.mounts {
			ready = ready && m.before != nil
		}
		t.mu.Unlock()
		if ready {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-deadline.C:
			return true // who has not told by now is left out
		case <-check.C:
		}
	}
}

// printFrameJSON prints each mount of a frame that is new.
func printFrameJSON(out io.Writer, f frame) error {
	enc := json.NewEncoder(out)
	for _, r := range f.rows {
		if r.again {
			continue
		}
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// printFrame prints a frame as lines, without knowing of a terminal.
func printFrame(out io.Writer, f frame) error {
	for _, line := range f.lines(0) {
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	return nil
}
