package mountopt

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// idMap reads disk:mount:len triples joined by colons. Empty fields mean nothing: podman begins the list with a colon
// (cf. fuse-overlayfs main.c read_mappings, whose strtok skips them). Which number is which follows find_mapping there: an
// owner on disk within [first, first+len) is shown counted from the second. A length of zero maps nothing and is dropped, unless
// there is nothing else: a map that maps nothing is not the same as none.
func idMap(t token) ([]IDRange, error) {
	const remedy = "give disk:mount:length triples, such as 0:100000:65536"
	s, err := needValue(t, remedy)
	if err != nil {
		return nil, err
	}
	var nums []uint32
	for field := range strings.SplitSeq(s, ":") {
		if field == "" {
			continue
		}
		n, err := strconv.ParseUint(field, 10, 32)
		if err != nil {
			return nil, t.bad(fmt.Sprintf("%q is not a number from 0 to %d", printable(field), uint32(math.MaxUint32)), remedy)
		}
		nums = append(nums, uint32(n))
	}
	if len(nums)%3 != 0 {
		return nil, t.bad(fmt.Sprintf("%d numbers are not a multiple of three", len(nums)), remedy)
	}
	var ranges, empty []IDRange
	for r := range slices.Chunk(nums, 3) {
		if r[2] == 0 {
			empty = []IDRange{{Disk: r[0], Mount: r[1]}}
			continue
		}
		// The greatest number is no identifier: to chown(2) it says to leave the owner.
		if uint64(r[0])+uint64(r[2]) > math.MaxUint32 || uint64(r[1])+uint64(r[2]) > math.MaxUint32 {
			return nil, t.bad(fmt.Sprintf("range %d:%d:%d goes beyond %d", r[0], r[1], r[2], uint32(math.MaxUint32-1)), remedy)
		}
		ranges = append(ranges, IDRange{Disk: r[0], Mount: r[1], Len: r[2]})
	}
	if len(ranges) == 0 {
		return empty, nil
	}
	const once = "give each identifier once"
	if a, b, ok := overlap(ranges, func(r IDRange) uint32 { return r.Disk }); ok {
		return nil, t.bad(fmt.Sprintf("ranges %s and %s overlap on disk", a, b), once)
	}
	if a, b, ok := overlap(ranges, func(r IDRange) uint32 { return r.Mount }); ok {
		return nil, t.bad(fmt.Sprintf("ranges %s and %s overlap in the mount", a, b), once)
	}
	return ranges, nil
}

// overlap finds two ranges that share an identifier on the side that start selects.
func overlap(ranges []IDRange, start func(IDRange) uint32) (a, b IDRange, found bool) {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(x, y IDRange) int { return cmp.Compare(start(x), start(y)) })
	for i := 1; i < len(sorted); i++ {
		if uint64(start(sorted[i-1]))+uint64(sorted[i-1].Len) > uint64(start(sorted[i])) {
			return sorted[i-1], sorted[i], true
		}
	}
	return IDRange{}, IDRange{}, false
}

// String returns the triple as the option is written.
func (r IDRange) String() string {
	return fmt.Sprintf("%d:%d:%d", r.Disk, r.Mount, r.Len)
}
