package server

import (
	"fmt"
	"os"
	"strings"

	"plyfs/fs/mountopt"
	"plyfs/internal/exit"
)

// request is a command line that mounts, understood.
type request struct {
	Personality
	opts mountopt.Options
	// source is what mountinfo shows as such; target is as given, relative to the working directory.
	source, target string
	foreground     bool
	// fake asks for everything but the mount.
	fake bool
	// namespace is a path or process id, empty for the caller's.
	namespace string
	// warnings are lines for stderr, see printWarnings.
	warnings []string

	help, version bool
}

// parseRequest reads the arguments behind the program's name. It does no I/O.
func parseRequest(p Personality, args []string) (request, error) {
	a, err := mountopt.ParseArgs(p.style, args)
	if err != nil {
		return request{}, exit.Faultf(exit.Usage, "%v; usage: %s", err, p.usage)
	}
	r := request{
		Personality: p, source: a.Source, target: a.Target, fake: a.Fake, namespace: a.Namespace,
		help: a.Help, version: a.Version,
	}
	if r.help || r.version {
		return r, nil
	}
	for _, f := range a.Unknown {
		if err := r.unknown(f, ""); err != nil {
			return request{}, err
		}
	}
	if r.opts, err = mountopt.Parse(a.Options...); err != nil {
		return request{}, exit.Faultf(exit.Usage, "%v", err)
	}
	r.lenient = r.lenient || a.Sloppy // -s of a mount(8) helper; unknown flags stay fatal
	for _, w := range r.opts.Unknown {
		if err := r.unknown(w.String(), mountopt.Hint(w)); err != nil {
			return request{}, err
		}
	}
	r.opts.Debug = r.opts.Debug || a.Debug
	r.foreground = a.Foreground || r.opts.Debug
	return r, r.checkWords(a)
}

// unknown reports or refuses a word that means nothing.
func (r *request) unknown(word, hint string) error {
	if r.lenient {
		// The wording is fuse-overlayfs's.
		r.warnings = append(r.warnings, "unknown argument ignored: "+word)
		return nil
	}
	kind := "option"
	if strings.HasPrefix(word, "-") {
		kind = "flag"
	}
	if hint == "" {
		hint = fmt.Sprintf("see %s --help", r.command)
	}
	return exit.Faultf(exit.Usage, "unknown %s %s; %s", kind, word, hint)
}

// checkWords looks for the words that are no flags. fuse-overlayfs takes the last one for the mount point, whatever
// stands before it.
func (r *request) checkWords(a mountopt.Args) error {
	if a.Target == "" {
		return exit.Faultf(exit.Usage, "no mountpoint specified; usage: %s", r.usage)
	}
	if r.style == mountopt.StyleHelper && a.Source == "" {
		return exit.Faultf(exit.Usage, "no mountpoint specified behind %s; usage: %s", a.Target, r.usage)
	}
	if a.Extra > 0 && r.subtype != NameFuseOverlayfs {
		return exit.Faultf(exit.Usage, "more than a source and a mount point given (a word with blanks needs quotes); usage: %s", r.usage)
	}
	return nil
}

// printWarnings prints what the command line gave reason to warn of, once.
func (r *request) printWarnings() {
	for _, w := range r.warnings {
		fmt.Fprintln(os.Stderr, w)
	}
	r.warnings = nil
}
