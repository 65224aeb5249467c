package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"

	"plyfs/drivers"
	"plyfs/layerdb"
	"plyfs/layerdb/image"
)

// sortedPairs are the pairs of a map as fields.
func sortedPairs(m map[string]string) (fields [][2]string) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fields = append(fields, [2]string{k, m[k]})
	}
	return fields
}

// verifyLine is the result of a verification in the output of --json.
type verifyLine struct {
	ID      string `json:"id"`
	OK      bool   `json:"ok"`
	Failure string `json:"failure,omitempty"`
}

func layerVerifyCommand() storeCommand {
	return storeCommand{
		name: "verify", usage: "compare the content of layers with what came in", min: 0, max: -1,
		refers:      true,
		line:        "plyfs layer verify [--json] [LAYER...]",
		description: "Without LAYER all of them.",
		run: func(ctx context.Context, s *session) error {
			var layers []layerdb.Layer
			for _, ref := range s.args {
				l, err := s.findLayer(ctx, ref)
				if err != nil {
					return err
				}
				layers = append(layers, l)
			}
			if len(s.args) == 0 {
				var err error
				if layers, err = s.layers.Layers(ctx); err != nil {
					return err
				}
			}
			lines := make([]verifyLine, 0, len(layers))
			var errs []error
			for _, l := range layers {
				err := s.layers.Verify(ctx, l.ID)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				line := verifyLine{ID: l.ID.String(), OK: err == nil}
				if err != nil {
					line.Failure = err.Error()
					errs = append(errs, err)
				}
				lines = append(lines, line)
			}
			if s.json() {
				return errors.Join(append(errs, s.printJSON(lines))...)
			}
			for _, l := range lines {
				if l.OK {
					fmt.Fprintf(s.printer(), "%s ok\n", l.ID)
				} else {
					fmt.Fprintf(s.printer(), "%s %s\n", l.ID, oneLine(l.Failure))
				}
			}
			return errors.Join(errs...)
		},
	}
}

// legacyLine is the result of an import of layers in the output of --json.
type legacyLine struct {
	Kind   string                `json:"kind"`
	Layers []layerdb.LegacyLayer `json:"layers"`
	// Skipped says what could not be taken, and why.
	Skipped []layerdb.LegacySkipped `json:"skipped"`
	// Images are the ids of the images.
	Images        []digest.Digest         `json:"images"`
	SkippedImages []layerdb.LegacySkipped `json:"skipped_images"`
}

func newLegacyLine(r image.LegacyResult) legacyLine {
	l := legacyLine{
		Kind: string(r.Kind), Layers: append([]layerdb.LegacyLayer{}, r.Layers...),
		Skipped: append([]layerdb.LegacySkipped{}, r.Skipped...), Images: []digest.Digest{},
		SkippedImages: append([]layerdb.LegacySkipped{}, r.SkippedImages...),
	}
	for _, i := range r.Images {
		l.Images = append(l.Images, i.ID)
	}
	return l
}

func layerImportCommand() storeCommand {
	return storeCommand{
		name: "import", usage: "read the layers and images that another storage driver left behind", min: 1, max: 1,
		line: "plyfs layer import [--kind KIND] [--json] DIR",
		description: "DIR is the data directory of docker, or of containers/storage (podman, buildah), with layers of aufs, overlay or\n" +
			"overlay2. It is only read. Images come with their names. Layers of no image are kept for a day.",
		flags: []cli.Flag{&cli.StringFlag{Name: "kind", Usage: "`KIND` of store, where it can't be told"}},
		run: func(ctx context.Context, s *session) error {
			hold := layerdb.Holder{
				Kind: "lease", Key: "import-" + time.Now().UTC().Format(time.RFC3339Nano), Expires: time.Now().Add(24 * time.Hour),
			}
			r, err := s.images.ImportLegacy(ctx, s.args[0], layerdb.LegacyOptions{
				Kind: layerdb.LegacyKind(s.c.String("kind")), Hold: &hold,
			})
			if err != nil {
				return err
			}
			if s.json() {
				return s.printJSON(newLegacyLine(r))
			}
			for _, l := range r.Layers {
				fmt.Fprintln(s.printer(), "layer", l.Layer)
				if !l.Exact {
					fmt.Fprintf(os.Stderr, "plyfs: layer %s: the old store does not have its exact stream; its DiffID may be another\n",
						oneLine(l.Source))
				}
			}
			for _, l := range r.Skipped {
				fmt.Fprintf(os.Stderr, "plyfs: layer %s was skipped: %s\n", oneLine(l.Source), oneLine(l.Reason))
			}
			for _, i := range r.Images {
				fmt.Fprintln(s.printer(), strings.Join(append([]string{"image", i.ID.String()}, i.Names...), " "))
			}
			for _, i := range r.SkippedImages {
				fmt.Fprintf(os.Stderr, "plyfs: image %s was skipped: %s\n", oneLine(i.Source), oneLine(i.Reason))
			}
			return nil
		},
	}
}

// gcLine is what a collection removed, in the output of --json.
type gcLine struct {
	layerdb.GCResult
	Blobs int `json:"blobs"`
	// Bytes is what the blobs took.
	Bytes int64 `json:"bytes"`
}

func layerGCCommand() storeCommand {
	return storeCommand{
		name: "gc", usage: "remove layers that nothing needs, and what interrupted commands left", line: "plyfs layer gc [--json]", max: 0,
		run: func(ctx context.Context, s *session) error {
			b, err := s.images.GC(ctx)
			if err != nil {
				return err
			}
			r, err := s.layers.GC(ctx)
			if err != nil {
				return err
			}
			line := gcLine{r, b.Blobs, b.Bytes}
			if s.json() {
				return s.printJSON(line)
			}
			_, err = fmt.Fprintf(s.out, "removed %s, %s, %s (%s) and %s\n", plural(line.Layers, "layer", "layers"),
				plural(line.Holders, "lease", "leases"), plural(line.Blobs, "blob", "blobs"), byteSize(line.Bytes),
				plural(line.Leftovers, "leftover", "leftovers"))
			return err
		},
	}
}

func layerCheckCommand() storeCommand {
	return storeCommand{
		name: "check", usage: "compare the database with what the driver has", line: "plyfs layer check [--repair] [--content] [--json]", max: 0,
		description: "Exit code 8 if problems are left. --repair also makes a new database of the copies of its records where the\n" +
			"database can't be opened.",
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "repair", Usage: "repair what can be repaired without losing anything"},
			&cli.BoolFlag{Name: "content", Usage: "read all files of all layers"},
		},
		run: func(ctx context.Context, s *session) error {
			o := layerdb.CheckOptions{}
			if s.c.Bool("content") {
				o.Mode = layerdb.CheckContent
			}
			if s.c.Bool("repair") {
				o.Repair = layerdb.Repair
			}
			r, err := s.layers.Check(ctx, o)
			if err != nil {
				return err
			}
			problems, err := s.images.Check(ctx)
			if err != nil {
				return err
			}
			return s.reportOut(r, problems)
		},
		closed: func(ctx context.Context, s *session, err error) error {
			if !errors.Is(err, drivers.ErrDamaged) || !s.c.Bool("repair") {
				return err
			}
			r, err := layerdb.Rebuild(ctx, s.options)
			if err != nil {
				return err
			}
			return s.reportOut(r, nil)
		},
	}
}

// checkLine is the result of a check in the output of --json.
type checkLine struct {
	Layers     int           `json:"layers"`
	Containers int           `json:"containers"`
	Holders    int           `json:"holders"`
	Problems   []problemLine `json:"problems"`
}

// problemLine is a problem in the output of --json.
type problemLine struct {
	Kind     string `json:"kind"`
	Object   string `json:"object"`
	Detail   string `json:"detail"`
	Remedy   string `json:"remedy,omitempty"`
	Repaired bool   `json:"repaired"`
}

func (s *session) reportOut(r layerdb.Report, more []image.Problem) error {
	line := checkLine{Layers: r.Layers, Containers: r.Containers, Holders: r.Holders, Problems: []problemLine{}}
	for _, p := range r.Problems {
		line.Problems = append(line.Problems, problemLine{p.Kind, p.Object, p.Detail, p.Remedy, p.Repaired})
	}
	for _, p := range more {
		line.Problems = append(line.Problems, problemLine{Kind: p.Kind, Object: p.Object, Detail: p.Detail, Remedy: p.Remedy})
	}
	left := 0
	for _, p := range line.Problems {
		if !p.Repaired {
			left++
		}
	}
	if s.json() {
		if err := s.printJSON(line); err != nil {
			return err
		}
	} else {
		for _, p := range line.Problems {
			tail := ""
			switch {
			case p.Repaired:
				tail = "; repaired"
			case p.Remedy != "":
				tail = "; " + oneLine(p.Remedy)
			}
			fmt.Fprintf(s.printer(), "%s %s: %s%s\n", p.Kind, printable(p.Object), oneLine(p.Detail), tail)
		}
		fmt.Fprintf(s.printer(), "%s, %s, %s: %s\n", plural(line.Layers, "layer", "layers"),
			plural(line.Containers, "container", "containers"), plural(line.Holders, "reference", "references"),
			plural(len(line.Problems), "problem", "problems"))
	}
	if left > 0 {
		return &fault{Code: storeDamaged}
	}
	return nil
}

func layerMigrateCommand() storeCommand {
	return storeCommand{
		name: "migrate", usage: "move the whole store to another driver", line: "plyfs layer migrate (--to DRIVER [--to-opt NAME=VALUE]... [--remove-old] | --remove-old) [-q]", max: 0,
		description: "Layer by layer, each compared with its digest; containers, too. What is interrupted goes on when the command is\n" +
			"given again, and --remove-old alone gives it up. The layers of the old driver stay until --remove-old. No container may\n" +
			"be mounted.",
		flags: []cli.Flag{
			&cli.StringFlag{Name: "to", Usage: "`DRIVER` to move to"},
			&cli.BoolFlag{Name: "remove-old", Usage: "remove the layers of the old driver, at the end or of an earlier migration; alone, also what an interrupted one moved"},
			listFlag("to-opt", "`NAME=VALUE`, an option of the new driver; may be repeated"),
			quietFlag(),
		},
		run: func(ctx context.Context, s *session) error {
			to, remove := s.c.String("to"), s.c.Bool("remove-old")
			switch {
			case to == "" && !remove:
				return faultf(storeUsage, "give --to DRIVER, or --remove-old to remove what an earlier migration left")
			case to == "":
				return s.layers.RemoveOld(ctx)
			}
			o := layerdb.MigrateOptions{Old: layerdb.KeepOld, Progress: s.migrateProgress()}
			if remove {
				o.Old = layerdb.RemoveOld
			}
			var err error
			if o.DriverOptions, err = pairsOf(listOf(s.c, "to-opt")); err != nil {
				return err
			}
			if err := s.layers.Migrate(ctx, to, o); err != nil {
				return err
			}
			if s.json() {
				return s.printJSON(map[string]string{"driver": to})
			}
			_, err = fmt.Fprintf(s.out, "the store belongs to %s now\n", to)
			return err
		},
	}
}

// migrateProgress tells a terminal how far a migration is.
func (s *session) migrateProgress() func(layerdb.MigrateProgress) {
	if s.c.Bool("quiet") || s.json() || !isTerminal(os.Stderr) {
		return nil
	}
	last := time.Now()
	return func(p layerdb.MigrateProgress) {
		if now := time.Now(); now.Sub(last) >= progressEvery {
			last = now
			fmt.Fprintf(os.Stderr, "plyfs layer migrate: %d of %d\n", p.Done, p.Total)
		}
	}
}
