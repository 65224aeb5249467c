package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"plyfs/fs/server"
)

// installState is what plyfs install --show prints.
type installState struct {
	Record  string `json:"record"`
	Program string `json:"program,omitempty"`
	// Interrupted says that an installation did not end; the next one takes back what it began.
	Interrupted bool             `json:"interrupted"`
	Changes     []installedState `json:"changes"`
	// Found is the fuse-overlayfs that callers by name get, as far as the own PATH says.
	Found string `json:"fuse_overlayfs_on_path,omitempty"`
}

type installedState struct {
	installChange
	State string `json:"state"`
}

func (s installState) print(w io.Writer) {
	if len(s.Changes) == 0 {
		fmt.Fprintf(w, "nothing is installed (there is no %s)\n", s.Record)
	}
	for _, c := range s.Changes {
		fmt.Fprintf(w, "%-10s %s%s: %s\n", c.Kind, c.Path, c.leadsTo(), c.State)
	}
	if s.Interrupted {
		fmt.Fprintln(w, "an installation was interrupted: plyfs install or plyfs uninstall takes back what it began")
	}
	if s.Found != "" {
		target, err := filepath.EvalSymlinks(s.Found)
		if err != nil {
			target = err.Error()
		}
		fmt.Fprintf(w, "%s on PATH is %s (%s)\n", server.NameFuseOverlayfs, s.Found, target)
	}
}

func (c installChange) leadsTo() string {
	if c.Kind != changeLink {
		return ""
	}
	return " -> " + c.Target
}

// installReport is what plyfs install --json and plyfs uninstall --json print.
type installReport struct {
	DryRun   bool             `json:"dry_run"`
	Changes  []reportedChange `json:"changes"`
	Already  []string         `json:"already,omitempty"`
	Show     string           `json:"show,omitempty"`
	Warnings []string         `json:"warnings,omitempty"`
	Next     []string         `json:"next,omitempty"`
}

type reportedChange struct {
	installChange
	Diff string `json:"diff,omitempty"`
}

// printInstall prints what was, or would be, changed.
func printInstall(c *cli.Context, p *installPlan) error {
	report := installReport{
		DryRun: c.Bool("dry-run"), Changes: []reportedChange{}, Already: p.already, Show: p.show, Warnings: p.warnings, Next: p.next,
	}
	for _, change := range p.changes {
		r := reportedChange{installChange: change}
		if change.Kind == changeFile {
			from := change.Path
			if change.old == nil {
				from = os.DevNull
			}
			r.Diff = unifiedDiff(from, change.Path, change.old, change.text)
		}
		report.Changes = append(report.Changes, r)
	}
	if c.Bool("json") {
		return encodeJSON(c.App.Writer, report)
	}
	return printed(c, storeFailed, report.print)
}

func (r installReport) print(w io.Writer) {
	for _, c := range r.Changes {
		fmt.Fprintf(w, "%-10s %s%s\n", c.Kind, c.Path, c.leadsTo())
		if c.Backup != "" {
			fmt.Fprintf(w, "%-10s %s, as it was\n", "", c.Backup)
		}
		fmt.Fprint(w, c.Diff)
	}
	for _, a := range r.Already {
		fmt.Fprintf(w, "%-10s %s\n", "already", a)
	}
	if r.Show != "" {
		fmt.Fprintf(w, "for containerd's config.toml (--write writes it):\n\n%s\n", r.Show)
	}
	for _, text := range r.Warnings {
		fmt.Fprintf(w, "warning: %s\n", text)
	}
	if r.DryRun {
		fmt.Fprintln(w, "nothing was changed (--dry-run)")
		return
	}
	for _, text := range r.Next {
		fmt.Fprintf(w, "next: %s\n", text)
	}
}

// printUninstall prints what was, or would be, taken back.
func printUninstall(c *cli.Context, undone []installChange, warnings []string) error {
	if c.Bool("json") {
		report := installReport{DryRun: c.Bool("dry-run"), Changes: []reportedChange{}, Warnings: warnings}
		for _, change := range undone {
			report.Changes = append(report.Changes, reportedChange{installChange: change})
		}
		return encodeJSON(c.App.Writer, report)
	}
	return printed(c, storeFailed, func(w io.Writer) {
		for _, change := range slices.Backward(undone) {
			switch {
			case change.Kind == changeDirectory:
			case change.Backup != "":
				fmt.Fprintf(w, "%-10s %s\n", "restored", change.Path)
			default:
				fmt.Fprintf(w, "%-10s %s\n", "removed", change.Path)
			}
		}
		for _, text := range warnings {
			fmt.Fprintf(w, "warning: %s\n", text)
		}
		if c.Bool("dry-run") {
			fmt.Fprintln(w, "nothing was changed (--dry-run)")
		}
	})
}

func encodeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
