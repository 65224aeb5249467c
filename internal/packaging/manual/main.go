package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"plyfs/internal/cmdtable"
)

func main() {
	if err := run(os.Args[1:], os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "manual:", err)
		os.Exit(1)
	}
}

// run reads the table from in and writes the pages.
func run(args []string, in io.Reader) error {
	flags := flag.NewFlagSet("manual", flag.ContinueOnError)
	docs := flags.String("docs", "docs", "`directory` of cli.md")
	out := flags.String("out", "", "`directory` to write to")
	var e edition
	flags.StringVar(&e.date, "date", "", "date of the pages")
	flags.StringVar(&e.version, "version", "", "version of plyfs")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" || flags.NArg() > 0 {
		return errors.New("usage: manual -docs DIR -date DATE -version VERSION -out DIR < table")
	}
	var table []cmdtable.Command
	if err := json.NewDecoder(in).Decode(&table); err != nil {
		return fmt.Errorf("table of commands: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(*docs, "cli.md"))
	if err != nil {
		return err
	}
	pages, err := allPages(e, table, string(text))
	if err != nil {
		return err
	}
	for _, p := range pages {
		dir := filepath.Join(*out, "man"+p.section)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, p.name+"."+p.section), []byte(p.text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// page is a manual page.
type page struct {
	name, section, text string
}

// edition is what the foot of each page says.
type edition struct {
	date, version string
}

// head begins a page.
func (e edition) head(name, section, title string) string {
	return fmt.Sprintf(".\\\" Made by internal/packaging/manual of the commands' own tables and docs/cli.md.\n"+
		".TH %s %s %s %s %s\n.nh\n.ad l\n.SH NAME\n%s \\- %s\n",
		quoted(strings.ToUpper(name)), section, e.date, quoted("plyfs "+e.version), quoted("plyfs"), escape(name), inline(title))
}
