package overlaystore

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"plyfs/drivers"
)

// maxLowers is how many lower layers the kernel's overlayfs mounts (cf. overlayfs params.h OVL_MAX_STACK), and plyfs
// too.
const maxLowers = 500

// The names of the layout; see the package doc.
const (
	linksDir      = "l"
	diffDir       = "diff"
	workDir       = "work"
	mergedDir     = "merged"
	linkFile      = "link"
	lowerFile     = "lower"
	recordFile    = "layer.json"
	restoringFile = "restoring"
	emptyDir      = ".empty"
	unpackPrefix  = ".unpack-"
)

// linkLength is the length of the names in l, and linkLetters what they consist of: base32, as moby's.
const (
	linkLength  = 26
	linkLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
)

// record is the content of layer.json.
type record struct {
	Parent   string        `json:"parent,omitempty"`
	Writable bool          `json:"writable,omitempty"`
	Label    string        `json:"label,omitempty"`
	Quota    drivers.Quota `json:"quota,omitzero"`
}

// layer is what the directory of a layer says.
type layer struct {
	record
	id   string
	link string
	// below are the links of the layers below, topmost first.
	below []string
	// restoring says that a layer that is made was lost: those above it know it by its link.
	restoring bool
}

// dirName is the name of a layer's directory: its id, unless that would be the directory of links. "l" and what would
// be in its way go by "l.l", "l.l.l" and so on.
func dirName(id string) string {
	if strings.ReplaceAll(id, aliasSuffix, "") == linksDir {
		return id + aliasSuffix
	}
	return id
}

const aliasSuffix = "." + linksDir

// idOf is the inverse of dirName; ok is false for what is no layer's directory.
func idOf(name string) (id string, ok bool) {
	if name == linksDir || drivers.ValidID(name) != nil {
		return "", false
	}
	if id, cut := strings.CutSuffix(name, aliasSuffix); cut && dirName(id) == name {
		return id, true
	}
	return name, true
}

// dir is the directory of a layer, or a file in it.
func (s *Store) dir(id string, parts ...string) string {
	return filepath.Join(append([]string{s.home, dirName(id)}, parts...)...)
}

func (s *Store) linkPath(link string) string { return filepath.Join(s.home, linksDir, link) }

// readLayer reads the directory of a layer. The error wraps ErrNotFound if there is none, and ErrDamaged, naming the
// file, if it is not as it was written.
func (s *Store) readLayer(id string) (*layer, error) {
	if _, err := os.Lstat(s.dir(id)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, notFound(id)
		}
		return nil, fmt.Errorf("layer %s: %w", id, err)
	}
	l := &layer{id: id}
	var err error
	if l.link, err = s.readLink(id); err != nil {
		return nil, err
	}
	if l.below, err = s.readLower(id); err != nil {
		return nil, err
	}
	known, err := s.readRecord(id, &l.record)
	if err != nil {
		return nil, err
	}
	if !known && len(l.below) > 0 {
		if l.Parent, err = s.ownerOf(l.below[0]); err != nil {
			return nil, damaged(s.dir(id, lowerFile), err)
		}
	}
	if (l.Parent != "") != (len(l.below) > 0) {
		why := fmt.Errorf("parent is %q, and there are %d layers below", l.Parent, len(l.below))
		return nil, damaged(s.dir(id, lowerFile), why)
	}
	return l, nil
}

// readRecord reads layer.json; known is false if there is none, as in a directory that moby made.
func (s *Store) readRecord(id string, r *record) (known bool, err error) {
	path := s.dir(id, recordFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(b, r); err != nil {
		return false, damaged(path, err)
	}
	return true, nil
}

func (s *Store) readLink(id string) (string, error) {
	path := s.dir(id, linkFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return "", damaged(path, err)
	}
	link := string(b)
	if !validLink(link) {
		return "", damaged(path, fmt.Errorf("%.40q is no link", link))
	}
	return link, nil
}

func (s *Store) readLower(id string) ([]string, error) {
	path := s.dir(id, lowerFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	parts := strings.Split(string(b), ":")
	if len(parts) > maxLowers {
		return nil, damaged(path, fmt.Errorf("%d layers, at most %d can be mounted", len(parts), maxLowers))
	}
	for i, p := range parts {
		link, ok := strings.CutPrefix(p, linksDir+"/")
		if !ok || !validLink(link) {
			return nil, damaged(path, fmt.Errorf("%.40q is no link", p))
		}
		parts[i] = link
	}
	return parts, nil
}

// ownerOf is the layer that a link leads to.
func (s *Store) ownerOf(link string) (id string, err error) {
	to, err := os.Readlink(s.linkPath(link))
	if err != nil {
		return "", err
	}
	name, _ := strings.CutSuffix(strings.TrimPrefix(to, "../"), "/"+diffDir)
	id, ok := idOf(name)
	if !ok || to != linkTarget(id) {
		return "", fmt.Errorf("%s leads to %.200q, which is no layer", s.linkPath(link), to)
	}
	return id, nil
}

func linkTarget(id string) string { return "../" + dirName(id) + "/" + diffDir }

func validLink(link string) bool {
	return len(link) == linkLength && strings.Trim(link, linkLetters) == ""
}

func newLink() string {
	b := make([]byte, linkLength)
	_, _ = rand.Read(b) // it never fails
	for i := range b {
		b[i] = linkLetters[int(b[i])%len(linkLetters)]
	}
	return string(b)
}

func lowerOf(links []string) string {
	var b strings.Builder
	for i, l := range links {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(linksDir + "/" + l)
	}
	return b.String()
}

func notFound(id string) error { return fmt.Errorf("layer %s: %w", id, drivers.ErrNotFound) }

// damaged says that a file of the store is not what was written.
func damaged(path string, why error) error {
	return fmt.Errorf("%s: %w: %w; remove the layer and make it anew, an image layer by pulling or importing its image again", path, why, drivers.ErrDamaged)
}
