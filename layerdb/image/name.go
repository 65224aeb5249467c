package image

import (
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"plyfs/drivers"
)

// What docker adds to a name that leaves it out.
const (
	defaultDomain = "docker.io"
	// legacyDomain is what docker called its registry before; it is the same one.
	legacyDomain    = "index.docker.io"
	officialPrefix  = "library/"
	defaultTag      = "latest"
	maxRepository   = 255
	identifierBytes = 64
)

// Name is a reference to an image in the normal form: "nginx" is docker.io/library/nginx:latest. Two references mean the
// same if their Names are equal.
type Name struct {
	// Domain is the registry, with a port if it has one.
	Domain string
	// Path is the repository within the registry.
	Path string
	// Tag and Digest say which image of the repository. A name with a digest alone has no tag; other names have one.
	Tag    string
	Digest digest.Digest
}

// grammar holds the expressions of a reference, cf. github.com/distribution/reference, whose grammar is the standard.
type grammar struct{ domain, path, tag, identifier *regexp.Regexp }

// nameGrammar is the grammar, which never changes, compiled when it is first needed.
var nameGrammar = sync.OnceValue(newGrammar)

func newGrammar() grammar {
	const label = `(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])`
	const component = `[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*`
	return grammar{
		domain:     regexp.MustCompile(`^(?:` + label + `(?:\.` + label + `)*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?$`),
		path:       regexp.MustCompile(`^` + component + `(?:/` + component + `)*$`),
		tag:        regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}$`),
		identifier: regexp.MustCompile(`^[a-f0-9]{64}$`),
	}
}

// ParseName reads a reference as docker does: without a registry it is on docker.io, one word there is in library/, and
// without tag and digest the tag is latest. The error wraps drivers.ErrInvalid and says what is wrong.
func ParseName(s string) (Name, error) {
	n, err := parseName(s)
	if err != nil {
		return Name{}, fmt.Errorf("image name %q: %w: %w", s, err, drivers.ErrInvalid)
	}
	return n, nil
}

func parseName(s string) (n Name, err error) {
	g := nameGrammar()
	if g.identifier.MatchString(s) {
		return n, fmt.Errorf("%d hexadecimal digits are an id, not a name", identifierBytes)
	}
	rest, dgst, hasDigest := strings.Cut(s, "@")
	if hasDigest {
		if n.Digest, err = digest.Parse(dgst); err != nil {
			return n, fmt.Errorf("digest %q: %w", dgst, err)
		}
	}
	// A colon before the last slash belongs to the port of the registry.
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		rest, n.Tag = rest[:i], rest[i+1:]
		if !g.tag.MatchString(n.Tag) {
			return n, fmt.Errorf("tag %q is not 1 to 128 letters, digits, or (not first) one of _.-", n.Tag)
		}
	}
	if n.Tag == "" && !hasDigest {
		n.Tag = defaultTag
	}
	n.Domain, n.Path = splitDomain(rest)
	switch {
	case n.Path == "":
		return n, fmt.Errorf("no repository")
	case !g.domain.MatchString(n.Domain):
		return n, fmt.Errorf("registry %q is no host, or host:port", n.Domain)
	case strings.ToLower(n.Path) != n.Path:
		return n, fmt.Errorf("repository %q has capital letters", n.Path)
	case !g.path.MatchString(n.Path):
		return n, fmt.Errorf("repository %q: components are lower-case letters and digits, separated by one of . _ __ -", n.Path)
	case len(n.Domain)+1+len(n.Path) > maxRepository:
		return n, fmt.Errorf("longer than %d bytes", maxRepository)
	}
	return n, nil
}

// splitDomain tells the registry from the repository: the first component is a registry if it could be no part of a
// repository's name, or is localhost.
func splitDomain(s string) (domain, path string) {
	first, rest, found := strings.Cut(s, "/")
	if !found || !strings.ContainsAny(first, ".:[") && first != localDomain && strings.ToLower(first) == first {
		first, rest = defaultDomain, s
	}
	if first == legacyDomain {
		first = defaultDomain
	}
	if first == defaultDomain && !strings.Contains(rest, "/") && rest != "" {
		rest = officialPrefix + rest
	}
	return first, rest
}

// Repository is the name without tag and digest.
func (n Name) Repository() string { return n.Domain + "/" + n.Path }

// String is the whole name, which ParseName reads as n.
func (n Name) String() string {
	s := n.Repository()
	if n.Tag != "" {
		s += ":" + n.Tag
	}
	if n.Digest != "" {
		s += "@" + n.Digest.String()
	}
	return s
}

// Familiar is the shortest form that ParseName reads as n, for people.
func (n Name) Familiar() string {
	s := n.String()
	if rest, ok := strings.CutPrefix(s, defaultDomain+"/"); ok {
		s = rest
		if rest, ok = strings.CutPrefix(s, officialPrefix); ok && !strings.Contains(rest, "/") {
			s = rest
		}
	}
	return s
}
