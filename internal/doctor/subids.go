package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

// wantIDs is how many subordinate ids an image may need: those up to nobody, 65534.
const wantIDs = 65536

// idRange is a line of /etc/subuid or /etc/subgid.
type idRange struct {
	owner        string
	first, count uint64
	line         int
}

func (r idRange) end() uint64 { return r.first + r.count }

// parseRanges reads lines OWNER:FIRST:COUNT; wrong returns the numbers of those that are none.
func parseRanges(text string) (ranges []idRange, wrong []int) {
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(line, ":")
		if len(f) != 3 {
			wrong = append(wrong, n)
			continue
		}
		first, err1 := strconv.ParseUint(f[1], 10, 32)
		size, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 != nil || err2 != nil || f[0] == "" || size == 0 || first+size > 1<<32-1 {
			wrong = append(wrong, n)
			continue
		}
		ranges = append(ranges, idRange{owner: f[0], first: first, count: size, line: n})
	}
	return ranges, wrong
}

// freeIDs is where wantIDs ids that nobody has begin.
func freeIDs(ranges []idRange) uint64 {
	next := uint64(100000)
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b idRange) int { return cmp.Compare(a.first, b.first) })
	for _, r := range sorted {
		if r.first >= next+wantIDs {
			break
		}
		next = max(next, r.end())
	}
	return next
}

// checkSubordinates looks at the ranges of a plain user, in both files.
func checkSubordinates(m *machine) []Finding {
	if !m.plain() {
		return nil
	}
	var all []Finding
	for _, f := range []struct{ path, flag string }{{"/etc/subuid", "uids"}, {"/etc/subgid", "gids"}} {
		text, err := m.ReadFile(f.path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = append(all, found(Problem, "%v", err).of(f.path).with(asRoot("chmod 0644 %s", f.path)))
			continue
		}
		all = append(all, m.checkRanges(f.path, f.flag, string(text)))
	}
	return all
}

// checkRanges looks at what one of the files says about the user.
func (m *machine) checkRanges(path, flag, text string) Finding {
	ranges, wrong := parseRanges(text)
	mine := func(r idRange) bool { return r.owner == m.user.Name || r.owner == strconv.Itoa(m.user.UID) }
	var total uint64
	var overlaps []string
	for _, r := range ranges {
		if !mine(r) {
			continue
		}
		total += r.count
		for _, o := range ranges {
			if o.line != r.line && r.first < o.end() && o.first < r.end() {
				overlaps = append(overlaps, fmt.Sprintf("line %d (%s) and line %d (%s)", r.line, r.owner, o.line, o.owner))
			}
		}
	}
	first := freeIDs(ranges)
	add := asRoot("usermod --add-sub%s %d-%d %s", flag, first, first+wantIDs-1, m.name())
	migrate := asUser("podman system migrate").because("where podman is used")
	switch {
	case len(overlaps) > 0:
		return found(Warning, "%s gives the same ids twice: %s; whoever has them can get at the other's containers", path,
			overlaps[0]).of(path).
			with(say("let one of them have other ids, such as %d-%d, before there are files of theirs", first, first+wantIDs-1))
	case total == 0:
		return found(Problem, "%s has no ids for %s: files of a container can have one owner only", path, m.name()).of(path).
			with(add, migrate)
	case total < wantIDs:
		return found(Warning, "%s has %d ids for %s; images with owners above that can't be unpacked", path, total, m.name()).
			of(path).
			with(add, migrate)
	case len(wrong) > 0:
		return found(Warning, "%s: line %d is not OWNER:FIRST:COUNT, and is ignored", path, wrong[0]).of(path).
			with(say("correct the line, or delete it"))
	}
	return found(OK, "%s: %d ids", path, total).of(path)
}
