package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"plyfs/drivers"
	"plyfs/layerdb"
	"plyfs/layerdb/image"
)

// containerCommand is plyfs container.
func containerCommand() *cli.Command {
	return storeGroup(
		"container", "make, mount and commit writable layers",
		containerCreateCommand(), containerLsCommand(), containerInspectCommand(), containerMountCommand(),
		containerUmountCommand(), containerChangesCommand(), containerDiffCommand(), containerCommitCommand(),
		containerRmCommand(),
	)
}

// containerLine is a container in the output of --json.
type containerLine struct {
	Name    string            `json:"name"`
	ID      string            `json:"id"`
	Image   string            `json:"image"`
	Parent  string            `json:"parent"`
	Created *time.Time        `json:"created"`
	Mounts  int               `json:"mounts"`
	Quota   drivers.Quota     `json:"quota"`
	Labels  map[string]string `json:"labels"`
	// Only in inspect: what it takes on disk, and what its driver says of it.
	Usage    *drivers.Usage    `json:"usage,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

func containerLineOf(c layerdb.Container) containerLine {
	l := containerLine{
		Name: c.Name, ID: c.ID, Image: c.Labels[image.LabelImage], Parent: c.Parent.String(), Created: knownTime(c.Created),
		Mounts: c.Mounts, Quota: c.Quota, Labels: map[string]string{},
	}
	for k, v := range c.Labels {
		if k != image.LabelImage {
			l.Labels[k] = v
		}
	}
	return l
}

// scratchImage is the word for a container of no image.
const scratchImage = "scratch"

func containerCreateCommand() storeCommand {
	return storeCommand{
		name: "create", usage: "make a writable layer over an image", min: 1, max: 2,
		refers:      true,
		line:        "plyfs container create [--quota SIZE] [--quota-inodes N] [--mount-label L] [--label N=V]... [--opt N=V]... [--json] IMAGE [NAME]",
		description: "IMAGE is an image, a layer, or scratch for nothing. Without NAME the container gets a random one, which is printed.",
		flags: []cli.Flag{
			&cli.StringFlag{Name: "quota", Usage: "`SIZE` in bytes, or with K, M or G, of what may be written"},
			&cli.Int64Flag{Name: "quota-inodes", Usage: "`NUMBER` of files that may be made"},
			&cli.StringFlag{Name: "mount-label", Usage: "SELinux `CONTEXT` of the mount"},
			listFlag("label", "`NAME=VALUE` to keep with the container; may be repeated"),
			listFlag("opt", "`NAME=VALUE`, an option of the driver for this container; may be repeated"),
		},
		run: func(ctx context.Context, s *session) error {
			o, err := s.containerOptions()
			if err != nil {
				return err
			}
			var parent layerdb.ChainID
			if ref := s.args[0]; ref != scratchImage {
				i, err := s.images.Find(ctx, ref)
				if errors.Is(err, drivers.ErrNotFound) {
					l, lerr := s.findLayer(ctx, ref)
					if lerr != nil {
						return err
					}
					parent = l.ID
				} else if err != nil {
					return err
				} else {
					parent = i.Top
					o.Labels[image.LabelImage] = i.ID.String()
				}
			}
			name := strings.ToLower(rand.Text())[:12]
			if len(s.args) > 1 {
				name = s.args[1]
			}
			c, err := s.layers.CreateContainer(ctx, name, parent, o)
			if err != nil {
				return err
			}
			if s.json() {
				return s.printJSON(containerLineOf(c))
			}
			_, err = fmt.Fprintln(s.out, c.Name)
			return err
		},
	}
}

func (s *session) containerOptions() (o layerdb.ContainerOptions, err error) {
	if text := s.c.String("quota"); text != "" {
		n, err := parseSize(text)
		if err != nil || n == 0 || n > math.MaxInt64 {
			return o, faultf(storeUsage, "--quota: %q is not a positive number of bytes, with an optional K, M or G", text)
		}
		o.Quota.Bytes = int64(n)
	}
	if o.Quota.Inodes = s.c.Int64("quota-inodes"); o.Quota.Inodes < 0 {
		return o, faultf(storeUsage, "--quota-inodes: %d is negative", o.Quota.Inodes)
	}
	o.MountLabel = s.c.String("mount-label")
	if o.Options, err = pairsOf(listOf(s.c, "opt")); err != nil {
		return o, err
	}
	if o.Labels, err = pairsOf(listOf(s.c, "label")); err != nil {
		return o, err
	}
	if _, ok := o.Labels[image.LabelImage]; ok {
		return o, faultf(storeUsage, "the label %s is plyfs's own", image.LabelImage)
	}
	return o, nil
}

func containerLsCommand() storeCommand {
	return storeCommand{
		name: "ls", usage: "list the containers", line: "plyfs container ls [--json]", max: 0,
		run: func(ctx context.Context, s *session) error {
			all, err := s.layers.Containers(ctx)
			if err != nil {
				return err
			}
			names := make(map[string]string)
			images, err := s.images.List(ctx)
			if err != nil {
				return err
			}
			for _, i := range images {
				if len(i.Names) > 0 {
					names[i.ID.String()] = imageName(i.Names[0])
				}
			}
			lines := make([]containerLine, 0, len(all))
			var rows [][]string
			for _, c := range all {
				l := containerLineOf(c)
				lines = append(lines, l)
				of := names[l.Image]
				if of == "" {
					of = knownOr(shortID(l.Image))
				}
				state := "-"
				if l.Mounts > 0 {
					state = fmt.Sprintf("mounted (%d)", l.Mounts)
				}
				rows = append(rows, []string{l.Name, of, state, shortTime(c.Created)})
			}
			if s.json() {
				return s.printJSON(lines)
			}
			return s.printTable([]string{"NAME", "IMAGE", "STATE", "CREATED"}, rows)
		},
	}
}

func containerInspectCommand() storeCommand {
	return storeCommand{
		name: "inspect", usage: "describe containers", line: "plyfs container inspect [--json] NAME...", min: 1, max: -1,
		refers: true,
		run: func(ctx context.Context, s *session) error {
			var lines []containerLine
			for _, name := range s.args {
				c, err := s.layers.Container(ctx, name)
				if err != nil {
					return err
				}
				l := containerLineOf(c)
				usage, err := s.layers.Usage(ctx, name)
				if err != nil {
					return err
				}
				l.Usage = &usage
				if l.Metadata, err = s.layers.Driver().Metadata(ctx, c.ID); err != nil {
					return err
				}
				lines = append(lines, l)
			}
			if s.json() {
				return s.printJSON(lines)
			}
			for _, l := range lines {
				fields := [][2]string{
					{"Container", l.Name},
					{"Image", knownOr(l.Image)},
					{"Parent", knownOr(l.Parent)},
					{"Mounts", fmt.Sprint(l.Mounts)},
					{"On disk", fmt.Sprintf("%s in %d inodes", byteSize(l.Usage.Bytes), l.Usage.Inodes)},
					{"Quota", quotaText(l.Quota)},
				}
				if err := s.printFields(append(fields, sortedPairs(l.Metadata)...)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func quotaText(q drivers.Quota) string {
	var parts []string
	if q.Bytes > 0 {
		parts = append(parts, byteSize(q.Bytes))
	}
	if q.Inodes > 0 {
		parts = append(parts, fmt.Sprintf("%d inodes", q.Inodes))
	}
	return knownOr(strings.Join(parts, ", "))
}

func containerMountCommand() storeCommand {
	return storeCommand{
		name: "mount", usage: "mount a container and print where", line: "plyfs container mount [--ro] [--json] NAME", min: 1, max: 1,
		refers:      true,
		description: "Each mount wants a plyfs container umount. Users other than root mount within plyfs unshare.",
		flags:       []cli.Flag{&cli.BoolFlag{Name: "ro", Usage: "so that nothing can be written"}},
		run: func(ctx context.Context, s *session) error {
			path, err := s.layers.Mount(ctx, s.args[0], layerdb.MountOptions{ReadOnly: s.c.Bool("ro")})
			if err != nil {
				return err
			}
			if s.private && drivers.IsMountPoint(path) {
				// It would end with this process, and nobody would have seen it.
				return errors.Join(faultf(storeUnsupported, "container %s: a mount of an unprivileged user is seen only in a session; "+
					"run plyfs unshare, and mount there", s.args[0]), s.layers.Unmount(context.WithoutCancel(ctx), s.args[0]))
			}
			if s.json() {
				return s.printJSON(map[string]string{"name": s.args[0], "path": path})
			}
			_, err = fmt.Fprintln(s.out, path)
			return err
		},
	}
}

func containerUmountCommand() storeCommand {
	return storeCommand{
		name: "umount", usage: "take back one mount of each container", line: "plyfs container umount [--all] NAME...", min: 1, max: -1,
		refers: true,
		flags:  []cli.Flag{&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "take back all mounts"}},
		run: func(ctx context.Context, s *session) error {
			for _, name := range s.args {
				c, err := s.layers.Container(ctx, name)
				if err != nil {
					return err
				}
				n := 1
				if s.c.Bool("all") {
					n = c.Mounts
				}
				if err := s.unmount(ctx, name, n); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// unmount takes n mounts of a container back.
func (s *session) unmount(ctx context.Context, name string, n int) error {
	for range n {
		if err := s.layers.Unmount(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func containerChangesCommand() storeCommand {
	return storeCommand{
		name: "changes", usage: "list what was changed in a container", line: "plyfs container changes [--json] NAME", min: 1, max: 1,
		refers: true,
		run: func(ctx context.Context, s *session) error {
			changes, err := s.layers.Changes(ctx, s.args[0])
			if err != nil {
				return err
			}
			return s.changesOut(changes)
		},
	}
}

func containerDiffCommand() storeCommand {
	return storeCommand{
		name: "diff", usage: "write what was changed in a container as a tar file", line: "plyfs container diff [-o FILE] NAME", min: 1, max: 1,
		refers: true,
		flags:  []cli.Flag{outputFlag()},
		run: func(ctx context.Context, s *session) error {
			r, err := s.layers.Diff(ctx, s.args[0])
			if err != nil {
				return err
			}
			return s.copyOut(r)
		},
	}
}

func containerCommitCommand() storeCommand {
	return storeCommand{
		name: "commit", usage: "make an image, or a layer, of a container", min: 1, max: -1,
		refers: true,
		line:   "plyfs container commit [--author A] [--message M] [--change INSTRUCTION]... [--layer] [--json] NAME [IMAGE...]",
		description: "IMAGE are names of the new image. The container stays as it is and may be mounted. Instructions are CMD, ENTRYPOINT,\n" +
			"ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR, as in a Dockerfile.",
		flags: []cli.Flag{
			&cli.StringFlag{Name: "author", Aliases: []string{"a"}, Usage: "`AUTHOR` of the image"},
			&cli.StringFlag{Name: "message", Aliases: []string{"m"}, Usage: "`TEXT` for the history"},
			&cli.GenericFlag{Name: "change", Aliases: []string{"c"}, Value: &optionList{}, Usage: "`INSTRUCTION` to apply; may be repeated"},
			&cli.BoolFlag{Name: "layer", Usage: "make only a layer, which is kept for a day"},
		},
		run: func(ctx context.Context, s *session) error {
			if s.c.Bool("layer") {
				return s.commitLayer(ctx)
			}
			names, err := parseNames(s.args[1:])
			if err != nil {
				return err
			}
			i, err := s.images.Commit(ctx, s.args[0], image.CommitOptions{
				Names: names, Author: s.c.String("author"), Message: s.c.String("message"), Changes: listOf(s.c, "change"),
			})
			if err != nil {
				return err
			}
			return s.imagesOut([]image.Image{i})
		},
	}
}

// commitLayer makes a layer that only a lease holds.
func (s *session) commitLayer(ctx context.Context) error {
	if len(s.args) > 1 {
		return faultf(storeUsage, "a layer has no name; leave out %s, or --layer", s.args[1])
	}
	hold := layerdb.Holder{Kind: "lease", Key: "commit-" + rand.Text(), Expires: time.Now().Add(24 * time.Hour)}
	l, err := s.layers.Commit(ctx, s.args[0], layerdb.RegisterOptions{Hold: &hold})
	if err != nil {
		return err
	}
	if s.json() {
		return s.printJSON(layerLineOf(l))
	}
	_, err = fmt.Fprintln(s.out, l.ID)
	return err
}

func containerRmCommand() storeCommand {
	return storeCommand{
		name: "rm", usage: "remove containers, and what was written in them", line: "plyfs container rm [--force] NAME...", min: 1, max: -1,
		refers: true,
		flags:  []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "unmount them first"}},
		run: func(ctx context.Context, s *session) error {
			for _, name := range s.args {
				c, err := s.layers.Container(ctx, name)
				if err != nil {
					return err
				}
				if s.c.Bool("force") {
					if err := s.unmount(ctx, name, c.Mounts); err != nil {
						return err
					}
				}
				if err := s.layers.RemoveContainer(ctx, name); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
