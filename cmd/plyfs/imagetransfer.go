package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v2"

	"plyfs/drivers"
	"plyfs/layerdb/image"
)

func platformFlag() cli.Flag {
	return &cli.StringFlag{Name: "platform", Usage: "`OS/ARCHITECTURE[/VARIANT]` to choose instead of this machine's"}
}

func insecureFlag() cli.Flag {
	return &cli.BoolFlag{Name: "insecure", Usage: "accept any certificate, and plain HTTP where a registry has no TLS"}
}

func keepBlobsFlag() cli.Flag {
	return &cli.BoolFlag{Name: "keep-blobs", Usage: "keep the compressed layers, so that a push gives the same bytes"}
}

func quietFlag() cli.Flag {
	return &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "show no progress"}
}

func compressionFlag() cli.Flag {
	return &cli.StringFlag{Name: "compression", Usage: "`FORMAT` of the layers: none, gzip or zstd; without it as they came, if kept, or gzip"}
}

// platform is what --platform says; the zero value if nothing.
func (s *session) platform() (p ocispec.Platform, err error) {
	if text := s.c.String("platform"); text != "" {
		return image.ParsePlatform(text)
	}
	return p, nil
}

func (s *session) blobPolicy() image.BlobPolicy {
	if s.c.Bool("keep-blobs") {
		return image.KeepBlobs
	}
	return image.DropBlobs
}

func (s *session) registry() image.RegistryOptions {
	return image.RegistryOptions{Insecure: s.c.Bool("insecure")}
}

func imagePullCommand() storeCommand {
	return storeCommand{
		name: "pull", usage: "bring images in from registries", min: 1, max: -1,
		line: "plyfs image pull [--platform P] [--insecure] [--keep-blobs] [-q] [--json] NAME...",
		description: "Credentials are those of docker login or podman login. A download that broke off goes on where it ended\n" +
			"when the same command is given again.",
		flags: []cli.Flag{platformFlag(), insecureFlag(), keepBlobsFlag(), quietFlag()},
		run: func(ctx context.Context, s *session) error {
			names, err := parseNames(s.args)
			if err != nil {
				return err
			}
			platform, err := s.platform()
			if err != nil {
				return err
			}
			var images []image.Image
			for _, n := range names {
				report, end := s.storeProgress()
				i, err := s.images.Pull(ctx, n, image.PullOptions{
					Registry: s.registry(), Platform: platform, Blobs: s.blobPolicy(), Report: report,
				})
				end()
				if err != nil {
					return err
				}
				images = append(images, i)
			}
			return s.imagesOut(images)
		},
	}
}

func imagePushCommand() storeCommand {
	return storeCommand{
		name: "push", usage: "bring an image to a registry", min: 1, max: 2,
		refers:      true,
		line:        "plyfs image push [--compression FORMAT] [--insecure] [-q] [--json] IMAGE [NAME]",
		description: "NAME is where to; without it IMAGE is a name itself.",
		flags:       []cli.Flag{compressionFlag(), insecureFlag(), quietFlag()},
		run: func(ctx context.Context, s *session) error {
			i, err := s.images.Find(ctx, s.args[0])
			if err != nil {
				return err
			}
			to, err := image.ParseName(s.args[len(s.args)-1])
			if err != nil {
				return err
			}
			if len(s.args) == 1 && !slices.Contains(exportNames(i, s.args[0]), to) {
				return faultf(storeUsage, "%s is no name of the image; say where to: plyfs image push %s NAME", s.args[0], s.args[0])
			}
			packing, err := image.ParsePacking(s.c.String("compression"))
			if err != nil {
				return err
			}
			report, end := s.storeProgress()
			r, err := s.images.Push(ctx, i, to, image.PushOptions{Registry: s.registry(), Packing: packing, Report: report})
			end()
			if err != nil {
				return err
			}
			return s.resultsOut([]image.Result{r})
		},
	}
}

// resultsOut prints what went out, and to people what is not as it came.
func (s *session) resultsOut(results []image.Result) error {
	if s.json() {
		return s.printJSON(results)
	}
	for _, r := range results {
		if r.Rewritten {
			fmt.Fprintf(os.Stderr, "plyfs: image %s: layers were compressed anew, so the manifest has a new digest; "+
				"--keep-blobs when it comes in keeps the old one\n", shortID(r.Image.String()))
		}
		fmt.Fprintln(s.printer(), cmp.Or(r.Manifest, r.Image)) // docker save's form has no manifest with a digest
	}
	return nil
}

func imageImportCommand() storeCommand {
	return storeCommand{
		name: "import", usage: "bring images in from archives and OCI layouts", min: 1, max: 1,
		line:        "plyfs image import [--name NAME] [--platform P] [--keep-blobs] [-q] [--json] FILE|DIR|-",
		description: "What it is, and how it is compressed, is found out: an OCI layout (directory or tar file), or what docker save or\npodman save wrote. - is standard input.",
		flags: []cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "`NAME` to give to the image"}, platformFlag(), keepBlobsFlag(), quietFlag(),
		},
		run: func(ctx context.Context, s *session) error {
			o := image.ImportOptions{Blobs: s.blobPolicy()}
			if text := s.c.String("name"); text != "" {
				n, err := image.ParseName(text)
				if err != nil {
					return err
				}
				o.Name = &n
			}
			var err error
			if o.Platform, err = s.platform(); err != nil {
				return err
			}
			if s.args[0] == "-" {
				o.Input = os.Stdin
			}
			report, end := s.storeProgress()
			o.Report = report
			images, err := s.images.Import(ctx, s.args[0], o)
			end()
			if len(images) == 0 {
				return err
			}
			return errors.Join(err, s.imagesOut(images))
		},
	}
}

func imageExportCommand() storeCommand {
	return storeCommand{
		name: "export", usage: "write images to an archive or an OCI layout", min: 1, max: -1,
		refers: true,
		line:   "plyfs image export [--format FORM] [--compression FORMAT] [-q] [--json] -o FILE|DIR|- IMAGE...",
		flags: []cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FILE`, new directory, or - for standard output"},
			&cli.StringFlag{
				Name: "format", Value: string(image.FormOCI), Usage: "`FORM`: oci-archive, docker-archive, or oci for a directory",
			},
			compressionFlag(), quietFlag(),
		},
		run: func(ctx context.Context, s *session) error {
			var exported []image.Exported
			for _, ref := range s.args {
				i, err := s.images.Find(ctx, ref)
				if err != nil {
					return err
				}
				exported = append(exported, image.Exported{Image: i, Names: exportNames(i, ref)})
			}
			form, err := image.ParseForm(s.c.String("format"))
			if err != nil {
				return err
			}
			packing, err := image.ParsePacking(s.c.String("compression"))
			if err != nil {
				return err
			}
			report, end := s.storeProgress()
			defer end()
			return s.export(ctx, exported, image.ExportOptions{Form: form, Packing: packing, Report: report})
		},
	}
}

// exportNames are the names of an image in an export: the one by which it was asked for, or all.
func exportNames(i image.Image, ref string) []image.Name {
	var all []image.Name
	asked, err := image.ParseName(ref)
	for _, text := range i.Names {
		n, perr := image.ParseName(text)
		if perr != nil {
			continue
		}
		if err == nil && n == asked {
			return []image.Name{n}
		}
		all = append(all, n)
	}
	return all
}

// export writes to where the command line says. A file appears when it is complete.
func (s *session) export(ctx context.Context, images []image.Exported, o image.ExportOptions) error {
	to := s.c.String("output")
	switch {
	case to == "":
		return faultf(storeUsage, "no output given; add -o FILE, or -o - for standard output")
	case o.Form == image.FormDir && to == "-":
		return faultf(storeUsage, "--format oci writes a directory, which standard output is not; use --format oci-archive")
	case o.Form == image.FormDir:
		results, err := s.images.ExportDir(ctx, to, images, o)
		if err != nil {
			return err
		}
		return s.resultsOut(results)
	case to == "-":
		if f, ok := s.out.(*os.File); ok && isTerminal(f) {
			return faultf(storeUsage, "standard output is a terminal; redirect it, or give a file with -o")
		}
		_, err := s.images.Export(ctx, s.out, images, o)
		return err
	}
	var results []image.Result
	err := writeOutput(to, func(w io.Writer) (err error) {
		results, err = s.images.Export(ctx, w, images, o)
		return err
	})
	if err != nil {
		return err
	}
	return s.resultsOut(results)
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

// writeOutput makes a file that appears when it is complete, in place of one that was there. What is no regular file, such
// as a pipe, is written directly.
func writeOutput(to string, write func(io.Writer) error) (err error) {
	if fi, err := os.Stat(to); err == nil && !fi.Mode().IsRegular() {
		if fi.IsDir() {
			return fmt.Errorf("%s is a directory: %w", to, drivers.ErrExists)
		}
		f, err := os.OpenFile(to, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	// What a symlink leads to is replaced, and not the symlink.
	if real, err := filepath.EvalSymlinks(to); err == nil {
		to = real
	}
	old, _ := os.Stat(to)
	if dir := filepath.Dir(to); !isDir(dir) {
		return fmt.Errorf("%s: directory %s: %w; make it first", to, dir, drivers.ErrNotFound)
	}
	f, err := os.OpenFile(filepath.Join(filepath.Dir(to), ".plyfs-export-"+rand.Text()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if err = write(f); err != nil {
		return err
	}
	if old != nil {
		if err = f.Chmod(old.Mode().Perm()); err != nil {
			return err
		}
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), to); err != nil {
		return err
	}
	return f.Close()
}
