// Command treecmp saves the fingerprint of a directory tree and compares it with another tree later. The demo uses it to
// show that two file systems serve the same tree, which can't be mounted at the same time.
//
//	treecmp save FILE DIR     writes the fingerprint of DIR to FILE
//	treecmp check FILE DIR    compares DIR with it: exit status 0 if equal, 1 if not, 2 if it can't tell
package main

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"

	"plyfs/internal/fingerprint"
)

// shown is how many differences are printed at most.
const shown = 40

var errDiffer = errors.New("the trees differ")

func main() {
	switch err := run(os.Args[1:], os.Stdout); {
	case err == nil:
	case errors.Is(err, errDiffer):
		os.Exit(1)
	default:
		fmt.Fprintln(os.Stderr, "treecmp:", err)
		os.Exit(2)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) != 3 || (args[0] != "save" && args[0] != "check") {
		return errors.New("usage: treecmp save|check FILE DIR")
	}
	tree, err := fingerprint.Take(args[2], fingerprint.Options{})
	if err != nil {
		return err
	}
	if args[0] == "save" {
		return save(args[1], tree)
	}
	want, err := load(args[1])
	if err != nil {
		return err
	}
	if diff := fingerprint.Diff(want, tree, fingerprint.Default); diff != nil {
		fmt.Fprintln(out, fingerprint.Format(diff, shown))
		return errDiffer
	}
	fmt.Fprintln(out, len(tree.Entries))
	return nil
}

func save(file string, t *fingerprint.Tree) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return gob.NewEncoder(f).Encode(t)
}

func load(file string) (*fingerprint.Tree, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t := new(fingerprint.Tree)
	if err := gob.NewDecoder(f).Decode(t); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return t, nil
}
