package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"plyfs/layerdb/image"
)

// imageCommand is plyfs image.
func imageCommand() *cli.Command {
	return storeGroup(
		"image", "pull, push, import, export and look at images",
		imagePullCommand(), imagePushCommand(), imageImportCommand(), imageExportCommand(),
		imageLsCommand(), imageInspectCommand(), imageHistoryCommand(), imageTagCommand(), imageRmCommand(),
	)
}

// imageLine is an image in the output of --json.
type imageLine struct {
	ID       string           `json:"id"`
	Names    []string         `json:"names"`
	Digests  []string         `json:"digests"`
	Manifest string           `json:"manifest,omitempty"`
	Layers   []imageLayerLine `json:"layers"`
	Top      string           `json:"top"`
	// Size is the sum of the uncompressed layers in bytes.
	Size     int64      `json:"size"`
	Platform string     `json:"platform"`
	Created  *time.Time `json:"created"`
	Added    *time.Time `json:"added"`
	Blobs    bool       `json:"keeps_blobs"`
	// Config is only in inspect.
	Config json.RawMessage `json:"config,omitempty"`
}

// imageLayerLine is a layer of an image in the output of --json.
type imageLayerLine struct {
	DiffID string `json:"diff_id"`
	Size   int64  `json:"size"`
	Blob   string `json:"blob,omitempty"`
}

func imageLineOf(i image.Image) imageLine {
	l := imageLine{
		ID: i.ID.String(), Names: append([]string{}, i.Names...), Digests: append([]string{}, i.Digests...),
		Layers: []imageLayerLine{}, Top: i.Top.String(), Size: i.Size, Platform: i.Platform, Created: knownTime(i.Created),
		Added: knownTime(i.Added), Blobs: i.KeepsBlobs,
	}
	if i.Manifest != nil {
		l.Manifest = i.Manifest.Digest.String()
	}
	for _, layer := range i.Layers {
		line := imageLayerLine{DiffID: layer.DiffID.String(), Size: layer.Size}
		if layer.Blob != nil {
			line.Blob = layer.Blob.Digest.String()
		}
		l.Layers = append(l.Layers, line)
	}
	return l
}

// imagesOut prints what came in: ids for people, objects for programs.
func (s *session) imagesOut(images []image.Image) error {
	if s.json() {
		lines := make([]imageLine, 0, len(images))
		for _, i := range images {
			lines = append(lines, imageLineOf(i))
		}
		return s.printJSON(lines)
	}
	for _, i := range images {
		fmt.Fprintln(s.printer(), i.ID)
	}
	return nil
}

// imageName is the name of an image that people know.
func imageName(full string) string {
	n, err := image.ParseName(full)
	if err != nil {
		return full
	}
	return n.Familiar()
}

func imageLsCommand() storeCommand {
	return storeCommand{
		name: "ls", usage: "list the images", line: "plyfs image ls [--json]", max: 0,
		run: func(ctx context.Context, s *session) error {
			all, err := s.images.List(ctx)
			if err != nil || s.json() {
				if err == nil {
					err = s.imagesOut(all)
				}
				return err
			}
			var rows [][]string
			for _, i := range all {
				names := i.Names
				if len(names) == 0 {
					names = []string{"-"}
				}
				for _, n := range names {
					rows = append(rows, []string{
						imageName(n), shortID(i.ID.String()), i.Platform, fmt.Sprint(len(i.Layers)), byteSize(i.Size),
						shortTime(i.Created), shortTime(i.Added),
					})
				}
			}
			return s.printTable([]string{"NAME", "ID", "PLATFORM", "LAYERS", "SIZE", "CREATED", "ADDED"}, rows)
		},
	}
}

func imageInspectCommand() storeCommand {
	return storeCommand{
		name: "inspect", usage: "describe images, with their configs", line: "plyfs image inspect [--json] IMAGE...", min: 1, max: -1,
		refers: true,
		run: func(ctx context.Context, s *session) error {
			var lines []imageLine
			for _, ref := range s.args {
				i, err := s.images.Find(ctx, ref)
				if err != nil {
					return err
				}
				l := imageLineOf(i)
				if l.Config, _, err = s.images.Config(ctx, i); err != nil {
					return err
				}
				lines = append(lines, l)
			}
			if s.json() {
				return s.printJSON(lines)
			}
			// What there is to see is nested: indented JSON is the form for people, too.
			text, err := json.MarshalIndent(lines, "", "  ")
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(s.out, "%s\n", text)
			return err
		},
	}
}

// historyLine is an entry of a history in the output of --json.
type historyLine struct {
	Created   *time.Time `json:"created"`
	CreatedBy string     `json:"created_by"`
	Author    string     `json:"author"`
	Comment   string     `json:"comment"`
	// DiffID and Size are those of the entry's layer, which most entries do not have.
	DiffID string `json:"diff_id,omitempty"`
	Size   int64  `json:"size"`
}

func imageHistoryCommand() storeCommand {
	return storeCommand{
		name: "history", usage: "say how an image was made, the latest first", line: "plyfs image history [--json] IMAGE", min: 1, max: 1,
		refers: true,
		run: func(ctx context.Context, s *session) error {
			i, err := s.images.Find(ctx, s.args[0])
			if err != nil {
				return err
			}
			entries, err := s.images.History(ctx, i)
			if err != nil {
				return err
			}
			lines := make([]historyLine, 0, len(entries))
			var rows [][]string
			for _, e := range entries {
				l := historyLine{
					Created: knownTime(e.Created), CreatedBy: e.CreatedBy, Author: e.Author, Comment: e.Comment, Size: e.Size,
					DiffID: e.DiffID.String(),
				}
				lines = append(lines, l)
				rows = append(rows, []string{
					knownOr(shortID(l.DiffID)), shortTime(e.Created), byteSize(e.Size), knownOr(clip(l.CreatedBy)), knownOr(clip(l.Comment)),
				})
			}
			if s.json() {
				return s.printJSON(lines)
			}
			return s.printTable([]string{"LAYER", "CREATED", "SIZE", "CREATED BY", "COMMENT"}, rows)
		},
	}
}

// clip is text for a column.
func clip(text string) string {
	const width = 60
	r := []rune(oneLine(text))
	if len(r) <= width {
		return string(r)
	}
	return string(r[:width-1]) + "…"
}

func imageTagCommand() storeCommand {
	return storeCommand{
		name: "tag", usage: "give an image further names", line: "plyfs image tag IMAGE NAME...", min: 2, max: -1,
		refers: true,
		run: func(ctx context.Context, s *session) error {
			i, err := s.images.Find(ctx, s.args[0])
			if err != nil {
				return err
			}
			names, err := parseNames(s.args[1:])
			if err != nil {
				return err
			}
			return s.images.Tag(ctx, i, names...)
		},
	}
}

func parseNames(words []string) ([]image.Name, error) {
	var names []image.Name
	for _, w := range words {
		n, err := image.ParseName(w)
		if err != nil {
			return nil, err
		}
		names = append(names, n)
	}
	return names, nil
}

func imageRmCommand() storeCommand {
	return storeCommand{
		name: "rm", usage: "remove names, and images with their last name", line: "plyfs image rm [--force] [--json] IMAGE...", min: 1, max: -1,
		refers:      true,
		description: "By name: the name, and the image if it was its last. By id: the image; with several names only with --force.",
		flags: []cli.Flag{&cli.BoolFlag{
			Name: "force", Aliases: []string{"f"}, Usage: "remove all names of an id, and images of which containers were made",
		}},
		run: func(ctx context.Context, s *session) error {
			force := image.Careful
			if s.c.Bool("force") {
				force = image.Forced
			}
			all := []image.Removed{}
			for _, ref := range s.args {
				r, err := s.images.Remove(ctx, ref, force)
				if err != nil {
					return err
				}
				all = append(all, r)
			}
			if s.json() {
				return s.printJSON(all)
			}
			for _, r := range all {
				for _, n := range r.Untagged {
					fmt.Fprintf(s.printer(), "untagged %s\n", imageName(n))
				}
				if r.Deleted != "" {
					fmt.Fprintf(s.printer(), "deleted %s\n", r.Deleted)
				}
			}
			return nil
		},
	}
}
