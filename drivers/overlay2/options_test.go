package overlay2

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"plyfs/drivers"
	"plyfs/drivers/internal/overlaystore"
)

func TestOptions(t *testing.T) {
	for name, c := range map[string]struct {
		in      map[string]string
		invalid string // is in the error's text
	}{
		"none":              {nil, ""},
		"all":               {map[string]string{"mountopt": "metacopy=on,,xino=auto", "volatile": "", "ignore_chown_errors": "false", "read_only": "1"}, ""},
		"unknown":           {map[string]string{"size": "1"}, "unknown option size"},
		"not a truth value": {map[string]string{"volatile": "maybe"}, "volatile=maybe"},
		"layers":            {map[string]string{"mountopt": "lowerdir=/etc"}, "lowerdir"},
		"privileges":        {map[string]string{"mountopt": "userxattr"}, "userxattr"},
	} {
		_, err := parseOptions(c.in)
		if (err != nil) != (c.invalid != "") || err != nil && (!errors.Is(err, drivers.ErrInvalid) || !strings.Contains(err.Error(), c.invalid)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPlan(t *testing.T) {
	rw := overlaystore.Stack{Home: "/h", Lowers: []string{"l/A", "l/B"}, Empty: ".empty", Upper: "c/diff", Work: "c/work"}
	ro := overlaystore.Stack{Home: "/h:1,2", Lowers: []string{"l/A"}, Empty: ".empty"}
	readOnly, label := rw, rw
	readOnly.ReadOnly = true
	label.Label = "system_u:object_r:container_file_t:s0:c1,c2"
	const plain = "redirect_dir=off metacopy=off index=off nfs_export=off"
	const layers = "lowerdir=/h/l/A:/h/l/B upperdir=/h/c/diff workdir=/h/c/work "
	for name, c := range map[string]struct {
		k      overlaystore.Stack
		opts   map[string]string
		userNS bool
		want   string
	}{
		"writable":          {k: rw, want: layers + plain},
		"user namespace":    {k: rw, userNS: true, want: layers + "redirect_dir=nofollow metacopy=off index=off nfs_export=off userxattr"},
		"volatile":          {k: rw, opts: map[string]string{"volatile": "true"}, want: layers + plain + " volatile"},
		"read-only":         {k: readOnly, opts: map[string]string{"volatile": "true"}, want: layers + plain + " ro"},
		"one layer":         {k: ro, want: `lowerdir=/h\:1\,2/l/A:/h\:1\,2/.empty ` + plain + " ro"},
		"label":             {k: label, want: layers + `context="system_u:object_r:container_file_t:s0:c1,c2" ` + plain},
		"user's own option": {k: rw, opts: map[string]string{"mountopt": "index=on,metacopy=on"}, want: layers + "redirect_dir=off nfs_export=off index=on metacopy=on"},
	} {
		o, err := parseOptions(c.opts)
		if err != nil {
			t.Fatal(err)
		}
		m := mounter{opts: o, userNS: c.userNS}.Plan(c.k)
		if got := strings.Join(m.Options, " "); m.Type != "overlay" || m.Source != "overlay" || m.Target != "" || got != c.want {
			t.Errorf("%s: %+v, want options %s", name, m, c.want)
		}
		if !slices.Equal(c.k.Lowers, []string{"l/A", "l/B"}) && !slices.Equal(c.k.Lowers, []string{"l/A"}) {
			t.Errorf("%s: the plan changed the stack: %q", name, c.k.Lowers)
		}
	}
}
