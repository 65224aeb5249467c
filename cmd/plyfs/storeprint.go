package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/opencontainers/go-digest"
)

// printJSON prints a value as one line of JSON.
func (s *session) printJSON(v any) error {
	_, err := fmt.Fprintln(s.out, jsonOf(v))
	return err
}

// printTable prints aligned columns; nothing if there are no rows.
func (s *session) printTable(head []string, rows [][]string) error {
	if len(rows) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(s.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(head, "\t"))
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	return w.Flush()
}

// printFields prints labels and values, one a line.
func (s *session) printFields(fields [][2]string) error {
	w := tabwriter.NewWriter(s.out, 0, 8, 2, ' ', 0)
	for _, f := range fields {
		fmt.Fprintf(w, "%s:\t%s\n", f[0], oneLine(f[1]))
	}
	return w.Flush()
}

// shortID is a digest for people.
func shortID(d string) string {
	const digits = 12
	if p, err := digest.Parse(d); err == nil {
		return p.Encoded()[:digits]
	}
	return d
}

// knownOr is text, or "-" for none.
func knownOr(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
