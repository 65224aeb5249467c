package mountopt

import (
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// errUnknown is returned by a spec whose key matches but whose form (with or without a value) doesn't; the word is then
// collected like one that was never heard of, as libfuse's option matching does.
var errUnknown = errors.New("unknown option")

// Parse reads option strings in order, as from repeated -o arguments. The error is an *Error about the first bad value;
// unknown words are no error.
func Parse(args ...string) (Options, error) {
	var o Options
	specs := lookup()
	for _, arg := range args {
		for _, t := range split(arg) {
			if swallowed(t) {
				continue
			}
			err := errUnknown
			if s, ok := specs[t.key]; ok {
				err = s.set(&o, t)
			}
			if errors.Is(err, errUnknown) {
				o.Unknown = append(o.Unknown, t.word())
				continue
			}
			if err != nil {
				return Options{}, err
			}
		}
	}
	if o.Remount {
		if o.Unknown = slices.DeleteFunc(o.Unknown, ofMount); len(o.Unknown) == 0 {
			o.Unknown = nil
		}
	}
	return o, nil
}

// ofMount reports words that the kernel shows of a FUSE mount: mount(8) gives them back with a remount, which changes none of them.
func ofMount(w Word) bool {
	return slices.Contains([]string{"fd", "rootmode", "user_id", "group_id", "seclabel"}, w.Key)
}

// swallowed reports words that are meant for others: fstab's comments and the extensions of systemd and libmount.
func swallowed(t token) bool {
	return strings.HasPrefix(t.key, "x-") || strings.HasPrefix(t.key, "X-")
}

// needValue returns t's value, or an error if it has none.
func needValue(t token, remedy string) (string, error) {
	if !t.hasValue || t.value == "" {
		return "", t.bad("needs a value", remedy)
	}
	return unescape(t.value), nil
}

// text is a value that is kept as it stands.
func text(t token, remedy string) (string, error) {
	s, err := needValue(t, remedy)
	if err == nil && strings.IndexByte(s, 0) >= 0 {
		err = t.bad("contains a NUL byte", remedy)
	}
	return s, err
}

// number is a decimal value between lo and hi.
func number(t token, lo, hi int64, remedy string) (int64, error) {
	s, err := needValue(t, remedy)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, t.bad("is not a number", remedy)
	}
	if n < lo || n > hi {
		return 0, t.bad("is out of range", remedy)
	}
	return n, nil
}

// size is a decimal number, not negative, that may end in a unit: k, m, g or t, powers of 1024.
func size(t token) (int64, error) {
	const remedy = "give a number, such as 1000, 64k, 500m, 10g or 2t, or 0 for no bound"
	s, err := needValue(t, remedy)
	if err != nil {
		return 0, err
	}
	shift := 0
	if i := strings.IndexByte("kmgt", s[len(s)-1]|0x20); i >= 0 {
		shift = 10 * (i + 1)
		s = s[:len(s)-1]
	}
	n, err := strconv.ParseInt(s, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, t.bad("is out of range", remedy)
	case err != nil || s[0] == '+':
		return 0, t.bad("is not a number", remedy)
	case n < 0 || n > math.MaxInt64>>shift:
		return 0, t.bad("is out of range", remedy)
	}
	return n << shift, nil
}

// path is a value that names one directory or file.
func path(t token) (string, error) {
	const remedy = "give a path"
	if !t.hasValue || t.value == "" {
		return "", t.bad("needs a value", remedy)
	}
	p := unescapePath(t.value)
	if strings.IndexByte(p, 0) >= 0 {
		return "", t.bad("contains a NUL byte", remedy)
	}
	return p, nil
}

// lowerDirs is a colon separated list of directories, topmost first. Empty elements at both ends are dropped, as
// fuse-overlayfs does. In between they would announce data-only layers (cf. overlayfs params.c ovl_parse_param_lowerdir).
func lowerDirs(t token) ([]string, error) {
	if !t.hasValue {
		return nil, t.bad("needs a value", "give directories separated by colons, the topmost first")
	}
	dirs := splitPaths(t.value)
	for len(dirs) > 0 && dirs[0] == "" {
		dirs = dirs[1:]
	}
	for len(dirs) > 0 && dirs[len(dirs)-1] == "" {
		dirs = dirs[:len(dirs)-1]
	}
	for _, d := range dirs {
		if d == "" {
			return nil, t.bad("data-only layers (behind ::) are not supported",
				`separate layers by one colon; write \: for a colon in a path`)
		}
		if strings.IndexByte(d, 0) >= 0 {
			return nil, t.bad("contains a NUL byte", "give directories separated by colons, the topmost first")
		}
	}
	if len(dirs) == 0 {
		return nil, nil
	}
	return dirs, nil
}

// timeout is a decimal number of seconds. A day and more is kept in whole seconds, less in microseconds: both have an exact
// decimal form.
func timeout(t token) (*time.Duration, error) {
	const remedy = "give seconds, such as 0, 0.5 or 86400"
	s, err := needValue(t, remedy)
	if err != nil {
		return nil, err
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(f) {
		return nil, t.bad("is not a number", remedy)
	}
	if f < 0 {
		return nil, t.bad("is negative", remedy)
	}
	var d time.Duration
	switch longest := float64(math.MaxInt64 / int64(time.Second)); {
	case f >= longest:
		d = time.Duration(longest) * time.Second
	case f >= 86400:
		d = time.Duration(math.Round(f)) * time.Second
	default:
		d = time.Duration(math.Round(f*1e6)) * time.Microsecond
	}
	return &d, nil
}
