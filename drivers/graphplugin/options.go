package graphplugin

import (
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"plyfs/drivers"
)

// The names of storage options. Those of dockerd begin with the prefix (--storage-opt plyfs.driver=overlay2), those of one
// container do not (docker run --storage-opt size=1G).
const (
	optionPrefix = "plyfs."
	optionDriver = "driver"
	optionSize   = "size"
	optionInodes = "inodes"
)

// settings are what Init asks for.
type settings struct {
	home string
	// driver is "" where none is named.
	driver string
	// quota bounds each writable layer for which dockerd says nothing else.
	quota drivers.Quota
	// options are the driver's own, by name.
	options  map[string]string
	uid, gid idMap
}

// parse checks an Init. The error wraps drivers.ErrInvalid.
func (r initRequest) parse() (s settings, err error) {
	if !filepath.IsAbs(r.Home) || filepath.Clean(r.Home) == "/" {
		return s, fmt.Errorf("home %q is not the absolute path of a directory for layers: %w", r.Home, drivers.ErrInvalid)
	}
	s.home, s.options = filepath.Clean(r.Home), make(map[string]string)
	limits := make(map[string]string)
	for _, opt := range r.Opts {
		name, value, _ := strings.Cut(opt, "=")
		name, ours := strings.CutPrefix(name, optionPrefix)
		switch {
		case !ours || name == "":
			return s, fmt.Errorf("storage option %q: those of this plugin begin with %q, such as %s%s=overlay2: %w",
				opt, optionPrefix, optionPrefix, optionDriver, drivers.ErrInvalid)
		case name == optionDriver:
			s.driver = value
		case name == optionSize || name == optionInodes:
			limits[name] = value
		default:
			s.options[name] = value
		}
	}
	if s.quota, err = parseQuota(limits); err != nil {
		return s, err
	}
	if s.uid, err = newIDMap("UIDMaps", r.UIDMaps); err != nil {
		return s, err
	}
	if s.gid, err = newIDMap("GIDMaps", r.GIDMaps); err != nil {
		return s, err
	}
	if (len(s.uid) == 0) != (len(s.gid) == 0) {
		return s, fmt.Errorf("of UIDMaps and GIDMaps one is empty, and the other is not: %w", drivers.ErrInvalid)
	}
	return s, nil
}

// equal says whether two Inits ask for the same.
func (r initRequest) equal(o initRequest) bool {
	return r.Home == o.Home && slices.Equal(r.Opts, o.Opts) && slices.Equal(r.UIDMaps, o.UIDMaps) &&
		slices.Equal(r.GIDMaps, o.GIDMaps)
}

// parseQuota reads the storage options of one layer. The error wraps drivers.ErrInvalid.
func parseQuota(opts map[string]string) (q drivers.Quota, err error) {
	for _, name := range slices.Sorted(maps.Keys(opts)) {
		switch name {
		case optionSize:
			q.Bytes, err = parseSize(opts[name])
		case optionInodes:
			q.Inodes, err = parseSize(opts[name])
		default:
			err = fmt.Errorf("there are %s and %s", optionSize, optionInodes)
		}
		if err != nil {
			return drivers.Quota{}, fmt.Errorf("storage option %s=%s: %w: %w", name, opts[name], err, drivers.ErrInvalid)
		}
	}
	return q, nil
}

// parseSize reads a number as docker does: 1048576, 1024k, 1M, 1MB, 1MiB are the same, and 1.5g is possible.
func parseSize(text string) (int64, error) {
	const hint = "give a number, such as 1000, 64k, 500m, 10g or 2t, or 0 for no bound"
	end := strings.IndexFunc(text, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if end < 0 {
		end = len(text)
	}
	unit := strings.ToLower(strings.TrimLeft(text[end:], " "))
	scale := 0
	if unit != "" && unit != "b" {
		scale = strings.IndexByte("kmgtp", unit[0]) + 1
		if rest := unit[1:]; scale == 0 || rest != "" && rest != "b" && rest != "ib" {
			return 0, fmt.Errorf("%q is not a unit; %s", unit, hint)
		}
	}
	n, err := strconv.ParseFloat(text[:end], 64)
	if err != nil {
		return 0, fmt.Errorf("not a number; %s", hint)
	}
	if n = math.Ldexp(n, 10*scale); n >= math.MaxInt64 {
		return 0, fmt.Errorf("out of range; %s", hint)
	}
	return int64(n), nil
}
