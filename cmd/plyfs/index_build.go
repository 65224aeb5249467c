package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/fs/mountopt"
	"plyfs/fs/server"
	"plyfs/fs/union"
	"plyfs/internal/exit"
	"plyfs/internal/sys"
	"plyfs/metadata"
	"plyfs/metadata/indexdb"
)

const indexBuildUsage = "plyfs index build [--digest] [--force] [--idle] [-q] [--json] [--dir DIR] " +
	"[-o OPTIONS] [LOWER...]"

// idleMemory is the memory that the garbage collector of an idle build tries to stay within, in bytes. What the
// database maps is not part of it.
const idleMemory = 128 << 20

// firstInherited is the lowest descriptor that a program may inherit beside the standard files.
const firstInherited = 3

// indexBuildCommand is plyfs index build.
func indexBuildCommand() *cli.Command {
	options := &optionList{}
	return &cli.Command{
		Name:      "build",
		Usage:     "build the index of a stack of lowers before its first mount",
		UsageText: indexBuildUsage,
		Description: "Takes the options of the mount, or the lowers, topmost first; what says nothing about the lowers is\n" +
			"ignored. An index that is there and not stale is kept.\n" +
			"Exit codes: 0 the index is there, 8 it could not be built, 16 bad command line, 32 interrupted.",
		Flags: []cli.Flag{
			optionsFlag(options),
			&cli.BoolFlag{Name: "digest", Usage: "record digests of the files' contents, which reads them all"},
			&cli.BoolFlag{Name: "force", Usage: "build anew what is there"},
			&cli.BoolFlag{Name: "idle", Usage: "use only what processor and disk have to spare, one thread, and little memory"},
			&cli.IntFlag{
				Name:  "fds",
				Usage: "the lowers are open as descriptors 3 to `N`+2, topmost first; ends with the process that passes them",
			},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print errors and warnings only"},
			jsonFlag(), dirFlag(),
		},
		OnUsageError: indexUsageError(indexBuildUsage),
		Action: func(c *cli.Context) error {
			o, err := parseIndexOptions(options.take(), c.Args().Slice(), indexBuildUsage)
			if err != nil {
				return err
			}
			return runIndexBuild(c, o)
		},
	}
}

// indexBuilt is the output of plyfs index build --json.
type indexBuilt struct {
	Name string `json:"name"`
	Path string `json:"path"`
	// Built is false if the index was there already.
	Built   bool   `json:"built"`
	Entries uint64 `json:"entries"`
	Dirs    uint64 `json:"dirs"`
	Bytes   int64  `json:"bytes"`
	Digests bool   `json:"digests"`
	// Seconds is how long building took.
	Seconds float64 `json:"seconds"`
}

func runIndexBuild(c *cli.Context, o mountopt.Options) error {
	ctx, stop := interruptible(c)
	defer stop()
	log := warnLog()
	n := c.Int("fds")
	if n > 0 {
		if err := sys.EndWithParent(); err != nil {
			return faultf(indexFailed, "%v", err)
		}
		unix.Umask(0o077) // a server has none
	}
	if c.Bool("idle") {
		beIdle(log)
	}
	server.RaiseFileLimit()
	s, err := openBuildStack(o, n)
	if err != nil {
		return err
	}
	dir, err := indexDir(c, o)
	if err != nil {
		s.Close()
		return err
	}
	cache, err := openIndexCache(dir, log)
	if err != nil {
		s.Close()
		return err
	}
	defer cache.Close()
	b := &buildRun{cache: cache, digests: c.Bool("digest"), force: c.Bool("force"), log: log}
	if !c.Bool("quiet") && isTerminal(os.Stderr) {
		b.progress = os.Stderr
	}
	out, err := b.run(ctx, o, s)
	if err != nil {
		return indexFault(err)
	}
	return printBuilt(c, out)
}

// beIdle makes the process yield to all others. One that cannot is still of use.
func beIdle(log *slog.Logger) {
	runtime.GOMAXPROCS(1)
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(idleMemory)
	}
	if err := sys.Idle(); err != nil {
		log.Warn("the index is built at a higher priority than idle", "error", err)
	}
}

// openBuildStack opens the lowers of o, or takes n of them from inherited descriptors.
func openBuildStack(o mountopt.Options, n int) (*server.Stack, error) {
	switch {
	case n == 0:
		return openIndexStack(o)
	case n < 0 || n > server.MaxLowers:
		return nil, faultf(indexUsage, "--fds %d: is out of range; give a number from 1 to %d", n, server.MaxLowers)
	case len(o.LowerDirs) > 0:
		return nil, faultf(indexUsage, "--fds %d and the lower %s; leave the paths out", n, o.LowerDirs[0])
	}
	paths, err := inheritedPaths(n)
	if err != nil {
		return nil, err
	}
	s := &server.Stack{}
	for i := range n {
		l, err := layer.Open(sys.ProcPath(firstInherited + i))
		if err != nil {
			s.Close()
			return nil, faultf(indexFailed, "descriptor %d: %s; it must be an open directory", firstInherited+i, exit.Reason(err))
		}
		if paths != nil {
			l.Path = paths[i]
		} else if path, err := os.Readlink(l.Path); err == nil {
			l.Path = path
		}
		s.Lowers = append(s.Lowers, l)
	}
	for i := range n {
		unix.Close(firstInherited + i)
	}
	return s, nil
}

// inheritedPaths returns the paths of the layers behind inherited descriptors, nil where the caller gave none.
func inheritedPaths(n int) ([]string, error) {
	text := os.Getenv(server.LayerPathsEnv)
	if text == "" {
		return nil, nil
	}
	var paths []string
	if err := json.Unmarshal([]byte(text), &paths); err != nil || len(paths) != n {
		return nil, faultf(indexUsage, "environment variable %s: is no JSON array of %s", server.LayerPathsEnv,
			plural(n, "path", "paths"))
	}
	return paths, nil
}

// buildRun is one run of plyfs index build.
type buildRun struct {
	cache          *indexdb.Cache
	digests, force bool
	log            *slog.Logger
	progress       io.Writer // nil for nobody
}

// run makes sure that the index is there. It takes over s.
func (b *buildRun) run(ctx context.Context, o mountopt.Options, s *server.Stack) (out indexBuilt, err error) {
	uo := lowersOnly(o, s, b.log)
	id, err := union.StackOf(&uo)
	if err != nil {
		s.Close()
		return out, err
	}
	if out, err = b.existing(id); err != nil || out.Name != "" && !b.wanted(out) {
		s.Close()
		return out, err
	}
	paths := make([]string, len(s.Lowers))
	for i, l := range s.Lowers {
		paths[i] = l.Path
	}
	start := time.Now()
	u, err := union.New(uo)
	if err != nil {
		return out, err
	}
	err = b.build(ctx, u, id, paths)
	if cerr := u.Close(); err == nil && cerr != nil {
		err = cerr
	}
	if err != nil {
		return out, err
	}
	if out, err = b.existing(id); err != nil {
		return out, err
	}
	if out.Name == "" || b.digests && !out.Digests {
		return out, fmt.Errorf("index %s in %s: another process removed or replaced it; try again", id.Name(), b.cache.Dir())
	}
	out.Built, out.Seconds = true, time.Since(start).Seconds()
	return out, nil
}

// wanted says whether an index that is there is to be built anew.
func (b *buildRun) wanted(there indexBuilt) bool { return b.force || b.digests && !there.Digests }

// existing describes the index if it is there and good. Else it has no name.
func (b *buildRun) existing(id *metadata.Stack) (out indexBuilt, err error) {
	x, err := b.cache.Open(id)
	if errors.Is(err, indexdb.ErrNotBuilt) || errors.Is(err, indexdb.ErrStale) {
		return out, nil
	}
	if err != nil {
		return out, err
	}
	i := x.Info()
	return indexBuilt{
		Name: i.Name, Path: i.Path, Entries: i.Entries, Dirs: i.Dirs, Bytes: i.Bytes, Digests: i.Digests,
	}, x.Close()
}

func (b *buildRun) build(ctx context.Context, u *union.Union, id *metadata.Stack, paths []string) error {
	builder, err := b.cache.Build(id, indexdb.BuildOptions{Digests: b.digests, Layers: paths})
	if err != nil {
		return err
	}
	stop := b.report(builder)
	err = u.Describe(ctx, builder, union.DescribeOptions{Digests: b.digests})
	stop()
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = b.supersede(id)
	}
	if err != nil {
		builder.Abort()
		return err
	}
	return builder.Commit()
}

// supersede makes an index that is there give way to the new one.
func (b *buildRun) supersede(id *metadata.Stack) error {
	x, err := b.cache.Open(id)
	if errors.Is(err, indexdb.ErrNotBuilt) || errors.Is(err, indexdb.ErrStale) {
		return nil
	}
	if err != nil {
		return err
	}
	if b.force || b.digests && !x.Info().Digests {
		x.MarkStale("plyfs index build replaces it")
	}
	return x.Close()
}

// report tells a terminal how far the build is, until stop is called.
func (b *buildRun) report(builder *indexdb.Builder) (stop func()) {
	if b.progress == nil {
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		last, start := uint64(0), time.Now()
		for {
			select {
			case <-done:
				return
			case now := <-tick.C:
				n := builder.Entries()
				rate := float64(n-last) / now.Sub(start).Seconds()
				fmt.Fprintf(b.progress, "plyfs index build: %d entries, %.0f/s\n", n, rate)
				last, start = n, now
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

func printBuilt(c *cli.Context, out indexBuilt) error {
	return printed(c, indexFailed, func(w io.Writer) { writeBuilt(w, c, out) })
}

func writeBuilt(w io.Writer, c *cli.Context, out indexBuilt) {
	switch {
	case c.Bool("json"):
		fmt.Fprintln(w, jsonOf(out))
	case c.Bool("quiet"):
	case !out.Built:
		fmt.Fprintf(w, "index %s: built already, %s, %s; --force builds it anew\n", out.Name,
			plural(out.Entries, "entry", "entries"), byteSize(out.Bytes))
	default:
		fmt.Fprintf(w, "index %s: %s in %s, %s, %.1f s (%.0f entries/s)\n", out.Name, plural(out.Entries, "entry", "entries"),
			plural(out.Dirs, "directory", "directories"), byteSize(out.Bytes), out.Seconds,
			float64(out.Entries)/max(out.Seconds, 1e-9))
	}
}
