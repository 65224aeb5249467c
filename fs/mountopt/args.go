package mountopt

import (
	"errors"
	"fmt"
	"strings"
)

// Style is a convention of command lines.
type Style int

// The styles.
const (
	// StyleFUSE is that of libfuse programs: [flags] [-o opts]... [source] target, in any order.
	StyleFUSE Style = iota
	// StyleHelper is that of mount(8) helpers: SPEC DIR [-sfnv] [-N namespace] [-o opts] [-t type]. Here -f means
	// not to mount, only to check.
	StyleHelper
)

// Args is a command line taken apart.
type Args struct {
	// Options are the -o arguments in order, for Parse.
	Options []string
	// Source is the first of several words that are no flags, Target the last; either may be empty.
	Source, Target string
	// Extra counts the words between Source and Target.
	Extra int

	Foreground, Debug, Help, Version bool
	// Fake asks to do everything but the mount, Sloppy to tolerate unknown options (StyleHelper).
	Fake, Sloppy bool
	// Namespace is a mount namespace to mount in: a path or a process id (StyleHelper).
	Namespace string

	// Unknown are the flags that mean nothing, in order.
	Unknown []string
}

// ErrNoArgument is wrapped by ParseArgs's error about a flag that stands last and needs an argument.
var ErrNoArgument = errors.New("needs an argument")

// ParseArgs takes apart the arguments behind the program's name. Unknown flags are collected; the only error is a flag
// without its argument.
func ParseArgs(style Style, args []string) (Args, error) {
	p := argParser{style: style, rest: args}
	for len(p.rest) > 0 {
		arg := p.rest[0]
		p.rest = p.rest[1:]
		if err := p.take(arg); err != nil {
			return Args{}, err
		}
	}
	if n := len(p.words); n > 0 {
		p.Target = p.words[n-1]
		if n > 1 {
			p.Source = p.words[0]
			p.Extra = n - 2
		}
	}
	return p.Args, nil
}

type argParser struct {
	Args
	style    Style
	rest     []string
	words    []string
	onlyWord bool // -- was seen
}

func (p *argParser) take(arg string) error {
	switch {
	case p.onlyWord || arg == "-" || !strings.HasPrefix(arg, "-"):
		p.words = append(p.words, arg)
	case arg == "--":
		p.onlyWord = true
	case strings.HasPrefix(arg, "--"):
		p.long(arg)
	default:
		return p.short(arg)
	}
	return nil
}

func (p *argParser) long(arg string) {
	switch arg {
	case "--debug":
		p.Debug = true
	case "--foreground":
		p.Foreground = true
	case "--help":
		p.Help = true
	case "--version":
		p.Version = true
	default:
		p.Unknown = append(p.Unknown, arg)
	}
}

// short reads a group such as -fd, -oro, or -sno ro.
func (p *argParser) short(arg string) error {
	for i := 1; i < len(arg); i++ {
		if p.simple(arg[i]) {
			continue
		}
		set := p.withArgument(arg[i])
		if set == nil {
			p.Unknown = append(p.Unknown, arg)
			return nil
		}
		value := arg[i+1:]
		if value == "" {
			if len(p.rest) == 0 {
				return fmt.Errorf("-%c %w", arg[i], ErrNoArgument)
			}
			value, p.rest = p.rest[0], p.rest[1:]
		}
		set(value)
		return nil
	}
	return nil
}

// simple handles a flag without argument and reports whether c is one.
func (p *argParser) simple(c byte) bool {
	switch {
	case c == 'h':
		p.Help = true
	case c == 'V':
		p.Version = true
	case c == 'd':
		p.Debug = true
	case c == 'f' && p.style == StyleHelper:
		p.Fake = true
	case c == 'f':
		p.Foreground = true
	case c == 's':
		// Single-threaded for libfuse, which means nothing here.
		p.Sloppy = p.style == StyleHelper
	case c == 'n' || c == 'v':
		// There is no /etc/mtab to spare, and nothing more to say.
	default:
		return false
	}
	return true
}

// withArgument returns what sets the flag c, nil if it is none that takes an argument.
func (p *argParser) withArgument(c byte) func(string) {
	switch {
	case c == 'o':
		return func(s string) { p.Options = append(p.Options, s) }
	case c == 'N' && p.style == StyleHelper:
		return func(s string) { p.Namespace = s }
	case c == 't':
		return func(string) {}
	}
	return nil
}
