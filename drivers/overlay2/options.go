package overlay2

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"plyfs/drivers"
	"plyfs/drivers/internal/overlaystore"
)

// options are the driver's.
type options struct {
	// mount are options for each mount, and override the driver's own.
	mount             []string
	volatile          bool
	ignoreChownErrors bool
	readOnly          bool
}

// settable are the mount options of which the driver has no opinion, or one that can be changed.
func settable() []string {
	return []string{
		"index", "metacopy", "redirect_dir", "xino", "nfs_export", "uuid", "fsync", "default_permissions", "override_creds",
		"nooverride_creds", "verity",
	}
}

func parseOptions(in map[string]string) (o options, err error) {
	for _, name := range slices.Sorted(maps.Keys(in)) {
		value := in[name]
		switch name {
		case "mountopt":
			o.mount, err = parseMount(value)
		case "volatile":
			o.volatile, err = overlaystore.Bool(name, value)
		case "ignore_chown_errors":
			o.ignoreChownErrors, err = overlaystore.Bool(name, value)
		case "read_only":
			o.readOnly, err = overlaystore.Bool(name, value)
		default:
			const known = "mountopt, volatile, ignore_chown_errors and read_only"
			err = fmt.Errorf("unknown option %s of driver %s; there are %s: %w", name, Name, known, drivers.ErrInvalid)
		}
		if err != nil {
			return options{}, err
		}
	}
	return o, nil
}

func parseMount(value string) ([]string, error) {
	var list []string
	for word := range strings.SplitSeq(value, ",") {
		key, _, _ := strings.Cut(word, "=")
		switch {
		case word == "":
			continue
		case !slices.Contains(settable(), key):
			return nil, fmt.Errorf("option mountopt=%s: %q is not for the user to set; there are %s: %w",
				value, key, strings.Join(settable(), ", "), drivers.ErrInvalid)
		}
		list = append(list, word)
	}
	return list, nil
}

// mountOptions are the options of a mount, those of the user last. A kernel may be configured to have any of them on:
// all that bear on what is in an upper are given.
func mountOptions(o options, k overlaystore.Stack, userNS bool) []string {
	list := []string{"redirect_dir=off", "metacopy=off", "index=off", "nfs_export=off"}
	if userNS {
		// The kernel refuses every other value there (cf. overlayfs params.c ovl_fs_params_verify).
		list[0] = "redirect_dir=nofollow"
		list = append(list, "userxattr")
	}
	if o.volatile && k.Upper != "" && !k.ReadOnly {
		list = append(list, "volatile")
	}
	for _, word := range o.mount {
		key, _, _ := strings.Cut(word, "=")
		list = slices.DeleteFunc(list, func(have string) bool { return strings.HasPrefix(have, key+"=") })
		list = append(list, word)
	}
	return list
}
