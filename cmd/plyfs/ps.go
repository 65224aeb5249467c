package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"plyfs/internal/control"
)

// psCommand is plyfs ps.
func psCommand() *cli.Command {
	return &cli.Command{
		Name: "ps", Usage: "list the mounts of plyfs",
		ArgsUsage: " ",
		Description: "Asks every server by its control socket, and finds mounts without one in /proc. STATE is ok, \"no socket\" (it serves, " +
			"and can't be asked), \"not answering\", or \"no server\": unmount that one (plyfs umount). " +
			"UPPER is what the upper takes up, known for mounts with a quota; --size counts the others. A target in brackets is " +
			"in another mount namespace.",
		Flags: []cli.Flag{
			allFlag(),
			&cli.BoolFlag{Name: "size", Usage: "count what each upper takes up, which looks at all its files"},
			&cli.BoolFlag{Name: "json", Usage: "print a line of JSON for each mount"},
		},
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return faultf(exitUsage, "%v; see plyfs ps --help", err)
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return faultf(exitUsage, "unexpected argument %s; see plyfs ps --help", c.Args().First())
			}
			list, err := findMounts(c.Context, scopeOf(c), c.Bool("size"))
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printMountsJSON(c.App.Writer, list)
			}
			return printMounts(c.App.Writer, list, time.Now())
		},
	}
}

func allFlag() cli.Flag {
	return &cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "mounts of all users, as far as this one may see them"}
}

func scopeOf(c *cli.Context) control.Scope {
	if c.Bool("all") {
		return control.All
	}
	return control.Own
}

// psMount is one line of plyfs ps --json.
type psMount struct {
	control.Found
	LowerCount int   `json:"lower_count"`
	UpperBytes int64 `json:"upper_bytes"` // -1 if unknown
}

func findMounts(ctx context.Context, s control.Scope, size bool) ([]psMount, error) {
	found, err := control.Gather(ctx, s)
	if err != nil {
		return nil, faultf(exitSystem, "find mounts: %v", err)
	}
	list := make([]psMount, len(found))
	for i, f := range found {
		list[i] = psMount{Found: f, LowerCount: len(f.Lowers), UpperBytes: -1}
		switch {
		case f.Quota != nil:
			list[i].UpperBytes = f.Quota.Bytes
		case size && f.Upper != "" && !f.Foreign:
			if list[i].UpperBytes, err = allocatedBelow(ctx, f.Upper); err != nil {
				list[i].UpperBytes = -1
			}
			if err := ctx.Err(); err != nil {
				return nil, faultf(exitInterrupted, "interrupted")
			}
		}
	}
	return list, nil
}

// allocatedBelow sums up what the inodes of a tree take up in bytes. Those with several names count once.
func allocatedBelow(ctx context.Context, root string) (int64, error) {
	const unit = 512 // of st_blocks
	var total int64
	seen := make(map[uint64]bool)
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if errors.Is(err, fs.ErrNotExist) && path != root {
			return nil // it went since it was listed
		}
		if err != nil {
			return err
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		total += st.Blocks * unit
		return ctx.Err()
	})
	return total, err
}

func printMountsJSON(out io.Writer, list []psMount) error {
	enc := json.NewEncoder(out)
	for _, m := range list {
		if err := enc.Encode(m); err != nil {
			return err
		}
	}
	return nil
}

func printMounts(out io.Writer, list []psMount, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "PID\tTARGET\tENGINE\tCONTAINER\tIMAGE\tAGE\tRSS\tUPPER\tLOWERS\tSTATE")
	for _, m := range list {
		pid, lowers, upper := "-", "-", "-"
		if m.PID > 0 {
			pid = strconv.Itoa(m.PID)
		}
		if m.LowerCount > 0 {
			lowers = strconv.Itoa(m.LowerCount)
		}
		switch {
		case m.UpperBytes >= 0:
			upper = shortSize(m.UpperBytes)
		case m.ReadOnly:
			upper = "ro"
		}
		memory := "-"
		if m.ResidentBytes > 0 {
			memory = shortSize(m.ResidentBytes)
		}
		target := oneLine(m.Target)
		if m.Foreign {
			target = "[" + target + "]"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", pid, knownOr(target), knownOr(m.Engine),
			knownOr(oneLine(m.Container)), knownOr(oneLine(m.Image)), age(m.Started, now), memory, upper, lowers, m.State)
	}
	return w.Flush()
}

// age is how long ago something began, in two digits or so.
func age(began, now time.Time) string {
	if began.IsZero() {
		return "-"
	}
	d := max(now.Sub(began), 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}

// shortSize is a number of bytes in three digits or so.
func shortSize[N int64 | uint64 | float64](n N) string {
	const units = "KMGTPE"
	v, u := float64(n), -1
	for v >= 1023.5 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	switch {
	case u < 0:
		return strconv.FormatFloat(v, 'f', 0, 64) + "B"
	case v < 10:
		return strconv.FormatFloat(v, 'f', 1, 64) + units[u:u+1]
	}
	return strconv.FormatFloat(v, 'f', 0, 64) + units[u:u+1]
}
