package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// indexDir is the directory with the index of a fixture's layers.
type indexDir struct {
	dir string // empty if none was asked for
	err error
}

// buildIndex builds the index of a fixture beside its layers, so that it is on the same medium and is cached and
// dropped with them.
func buildIndex(ctx context.Context, sys System, fx builtFixture) indexDir {
	x := indexDir{dir: filepath.Join(fx.dir, "index")}
	if x.err = sys.index(ctx, fx.layers, x.dir); x.err == nil && fsName(fx.dir) != tmpfsMedium {
		x.err = syncFS(fx.dir)
	}
	return x
}

// index builds the index of a stack of lowers in dir, which must not hold one.
func (s System) index(ctx context.Context, lowers []string, dir string) error {
	opts := "lowerdir=" + strings.Join(lowers, ":")
	if s.Options != "" {
		opts += "," + s.Options
	}
	args := append(append([]string{}, s.Indexer[1:]...), "-q", "--dir", dir, "-o", opts)
	out, err := exec.CommandContext(ctx, s.Indexer[0], args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: build the index: %w: %s", s.Name, err, lastLines(string(out), 5))
	}
	return nil
}

// expectIndexUsed verifies that a server answers from the index in dir: its tables are mapped into its memory. An
// index that a mount does not accept fails no request, and would be measured as if there were none.
func expectIndexUsed(pid int, dir string) error {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return err
	}
	if !bytes.Contains(maps, []byte(" "+dir+"/")) {
		return fmt.Errorf("verify: the server does not have the index %s open", dir)
	}
	return nil
}

// diskUsage returns the bytes that the files below dir take of their file system.
func diskUsage(dir string) (int64, error) {
	var total int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			total += st.Blocks * 512
		}
		return nil
	})
	return total, err
}

// detachBelow unmounts what a workload left mounted below dir.
func detachBelow(dir string) error {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var left error
	for line := range strings.Lines(string(info)) {
		f := strings.Fields(line)
		if len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			left = errors.Join(left, detach(f[4]))
		}
	}
	return left
}
