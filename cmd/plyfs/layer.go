package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/layerdb"
	"plyfs/layerdb/image"
)

// layerCommand is plyfs layer.
func layerCommand() *cli.Command {
	return storeGroup(
		"layer", "look at, check and move layers",
		layerLsCommand(), layerInspectCommand(), layerChangesCommand(), layerDiffCommand(), layerExportCommand(),
		layerVerifyCommand(), layerImportCommand(), layerGCCommand(), layerCheckCommand(), layerMigrateCommand(),
	)
}

// layerLine is a layer in the output of --json.
type layerLine struct {
	ID     string `json:"id"`
	DiffID string `json:"diff_id"`
	Parent string `json:"parent"`
	// Size is the length of the uncompressed tar stream, Content the bytes of the files in it.
	Size    int64      `json:"size"`
	Content int64      `json:"content"`
	Entries int64      `json:"entries"`
	Created *time.Time `json:"created"`
	// Only in inspect: what the layer takes on disk, who uses it, and what its driver says of it.
	Usage    *drivers.Usage    `json:"usage,omitempty"`
	Users    []string          `json:"users,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

func layerLineOf(l layerdb.Layer) layerLine {
	return layerLine{
		ID: l.ID.String(), DiffID: l.DiffID.String(), Parent: l.Parent.String(), Size: l.Size, Content: l.Content, Entries: l.Entries,
		Created: knownTime(l.Created),
	}
}

func layerLsCommand() storeCommand {
	return storeCommand{
		name: "ls", usage: "list the layers, parents first", line: "plyfs layer ls [--json]", max: 0,
		run: func(ctx context.Context, s *session) error {
			all, err := s.layers.Layers(ctx)
			if err != nil {
				return err
			}
			lines := make([]layerLine, 0, len(all))
			var rows [][]string
			for _, l := range all {
				lines = append(lines, layerLineOf(l))
				rows = append(rows, []string{
					shortID(l.ID.String()), shortID(l.DiffID.String()), knownOr(shortID(l.Parent.String())), byteSize(l.Size),
					fmt.Sprint(l.Entries), shortTime(l.Created),
				})
			}
			if s.json() {
				return s.printJSON(lines)
			}
			return s.printTable([]string{"ID", "DIFF ID", "PARENT", "SIZE", "ENTRIES", "CREATED"}, rows)
		},
	}
}

// findLayer returns the layer that a user means by a ChainID, a DiffID, or the beginning of one; an image stands for its
// topmost layer.
func (s *session) findLayer(ctx context.Context, ref string) (layerdb.Layer, error) {
	all, err := s.layers.Layers(ctx)
	if err != nil {
		return layerdb.Layer{}, err
	}
	var found []layerdb.Layer
	for _, l := range all {
		if isPrefix(l.ID.String(), ref) {
			return oneLayer(all, ref, func(l layerdb.Layer) bool { return isPrefix(l.ID.String(), ref) })
		}
		if isPrefix(l.DiffID.String(), ref) {
			found = append(found, l)
		}
	}
	if len(found) > 0 {
		return oneLayer(found, ref, func(layerdb.Layer) bool { return true })
	}
	if i, err := s.images.Find(ctx, ref); err == nil && i.Top != "" {
		return s.layers.Layer(ctx, i.Top)
	}
	return layerdb.Layer{}, fmt.Errorf("layer %s: %w; plyfs layer ls lists what there is", ref, drivers.ErrNotFound)
}

// oneLayer returns the only layer that fits.
func oneLayer(all []layerdb.Layer, ref string, fits func(layerdb.Layer) bool) (found layerdb.Layer, err error) {
	n := 0
	for _, l := range all {
		if fits(l) {
			found = l
			n++
		}
	}
	if n > 1 {
		return layerdb.Layer{}, fmt.Errorf("layer %s: %d layers fit: %w", ref, n, image.ErrAmbiguous)
	}
	return found, nil
}

// isPrefix says whether ref is the beginning of a digest, with or without the algorithm.
func isPrefix(d, ref string) bool {
	const least = 4
	p, err := digest.Parse(d)
	if err != nil {
		return false
	}
	hex := strings.TrimPrefix(ref, p.Algorithm().String()+":")
	return len(hex) >= least && strings.HasPrefix(p.Encoded(), hex)
}

func layerInspectCommand() storeCommand {
	return storeCommand{
		name: "inspect", usage: "describe layers", line: "plyfs layer inspect [--json] LAYER...", min: 1, max: -1,
		refers:      true,
		description: "LAYER is a ChainID, a DiffID, the beginning of one, or an image for its topmost layer.",
		run: func(ctx context.Context, s *session) error {
			var lines []layerLine
			for _, ref := range s.args {
				l, err := s.describeLayer(ctx, ref)
				if err != nil {
					return err
				}
				lines = append(lines, l)
			}
			if s.json() {
				return s.printJSON(lines)
			}
			for _, l := range lines {
				fields := [][2]string{
					{"Layer", l.ID},
					{"DiffID", l.DiffID},
					{"Parent", knownOr(l.Parent)},
					{"Stream", byteSize(l.Size)},
					{"Content", fmt.Sprintf("%s in %d entries", byteSize(l.Content), l.Entries)},
					{"On disk", fmt.Sprintf("%s in %d inodes", byteSize(l.Usage.Bytes), l.Usage.Inodes)},
					{"Used by", knownOr(strings.Join(l.Users, ", "))},
				}
				if err := s.printFields(append(fields, sortedPairs(l.Metadata)...)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func (s *session) describeLayer(ctx context.Context, ref string) (layerLine, error) {
	found, err := s.findLayer(ctx, ref)
	if err != nil {
		return layerLine{}, err
	}
	l := layerLineOf(found)
	usage, err := s.layers.LayerUsage(ctx, found.ID)
	if err != nil {
		return l, err
	}
	l.Usage = &usage
	if l.Users, err = s.layers.Users(ctx, found.ID); err != nil {
		return l, err
	}
	l.Metadata, err = s.layers.Driver().Metadata(ctx, found.CacheID)
	return l, err
}

// changeLine is a change in the output of --json.
type changeLine struct {
	// Kind is A, C or D, as docker diff prints it.
	Kind string `json:"kind"`
	Path string `json:"path"`
	// PathBytes is the path where it is not UTF-8, in base64.
	PathBytes []byte `json:"path_bytes,omitempty"`
}

// changesOut prints changes, as docker diff does.
func (s *session) changesOut(changes []tarlayer.Change) error {
	if s.json() {
		lines := make([]changeLine, 0, len(changes))
		for _, c := range changes {
			l := changeLine{Kind: c.Kind.String(), Path: "/" + c.Path}
			if !utf8.ValidString(l.Path) {
				l.PathBytes = []byte(l.Path)
			}
			lines = append(lines, l)
		}
		return s.printJSON(lines)
	}
	for _, c := range changes {
		fmt.Fprintf(s.printer(), "%s %s\n", c.Kind, printable("/"+c.Path))
	}
	return nil
}

func layerChangesCommand() storeCommand {
	return storeCommand{
		name: "changes", usage: "list what a layer changes", line: "plyfs layer changes [--json] LAYER", min: 1, max: 1,
		refers: true,
		run: func(ctx context.Context, s *session) error {
			l, err := s.findLayer(ctx, s.args[0])
			if err != nil {
				return err
			}
			changes, err := s.layers.LayerChanges(ctx, l.ID)
			if err != nil {
				return err
			}
			return s.changesOut(changes)
		},
	}
}

func outputFlag() cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "-", Usage: "`FILE` to write to, or - for standard output"}
}

// copyOut writes the tar stream r to where --output says, and closes it.
func (s *session) copyOut(r io.ReadCloser) error {
	return errors.Join(s.streamTo(func(w io.Writer) error {
		_, err := io.Copy(w, r)
		return err
	}), r.Close())
}

// streamTo writes a tar stream to where --output says.
func (s *session) streamTo(write func(io.Writer) error) error {
	to := s.c.String("output")
	if to != "-" {
		return writeOutput(to, write)
	}
	if f, ok := s.out.(*os.File); ok && isTerminal(f) {
		return faultf(storeUsage, "standard output is a terminal; redirect it, or give a file with -o")
	}
	return write(s.out)
}

func layerDiffCommand() storeCommand {
	return storeCommand{
		name: "diff", usage: "write what a layer changes as a tar file, as its driver sees it", min: 1, max: 1,
		refers: true,
		line:   "plyfs layer diff [-o FILE] LAYER",
		description: "The same layer gives the same bytes with every driver, but for a file that a layer replaces by one of equal size and time:\n" +
			"drivers that compare whole trees (vfs, btrfs, zfs, devicemapper) may take it for the same one. The bytes that came in are\n" +
			"those of plyfs layer export.",
		flags: []cli.Flag{outputFlag()},
		run: func(ctx context.Context, s *session) error {
			l, err := s.findLayer(ctx, s.args[0])
			if err != nil {
				return err
			}
			parent := ""
			if l.Parent != "" {
				p, err := s.layers.Layer(ctx, l.Parent)
				if err != nil {
					return err
				}
				parent = p.CacheID
			}
			r, err := drivers.DifferOf(s.layers.Driver()).Diff(ctx, l.CacheID, parent, &drivers.DiffOptions{Note: func(path, reason string) {
				s.options.Log.Warn("left out of the difference", "layer", l.ID, "path", "/"+path, "reason", reason)
			}})
			if err != nil {
				return err
			}
			return s.copyOut(r)
		},
	}
}

func layerExportCommand() storeCommand {
	return storeCommand{
		name: "export", usage: "write a layer as the tar file that came in, byte for byte", min: 1, max: 1,
		refers: true,
		line:   "plyfs layer export [-o FILE] LAYER",
		flags:  []cli.Flag{outputFlag()},
		run: func(ctx context.Context, s *session) error {
			l, err := s.findLayer(ctx, s.args[0])
			if err != nil {
				return err
			}
			return s.streamTo(func(w io.Writer) error { return s.layers.Export(ctx, l.ID, w) })
		},
	}
}
