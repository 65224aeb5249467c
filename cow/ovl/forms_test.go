package ovl_test

import (
	"slices"
	"testing"

	"plyfs/cow/ovl"
)

func TestForms(t *testing.T) {
	trusted, user := ovl.Trusted(), ovl.User()
	for _, c := range []struct {
		forms      ovl.Forms
		all        bool
		namespaces []*ovl.Names
		// escaped and plain are names that an application gives, private ones that it cannot see.
		escaped        map[string]string
		plain, private []string
	}{
		{
			ovl.Forms{},
			true,
			[]*ovl.Names{trusted, user},
			map[string]string{
				"trusted.overlay.opaque":        "trusted.overlay.overlay.opaque",
				"user.overlay.opaque":           "user.overlay.overlay.opaque",
				"user.fuseoverlayfs.opaque":     "user.fuseoverlayfs.fuseoverlayfs.opaque",
				"user.containers.override_stat": "user.containers.override_user.containers.override_stat",
			},
			[]string{"user.x"},
			[]string{trusted.Opaque, user.Opaque, ovl.FuseOverlayfsOpaque, "user.containers.override_stat"},
		},
		{
			ovl.KernelForms(trusted), false,
			[]*ovl.Names{trusted},
			map[string]string{"trusted.overlay.overlay.x": "trusted.overlay.overlay.overlay.x"},
			[]string{
				"user.overlay.opaque", "user.overlay.overlay.opaque", "user.fuseoverlayfs.opaque",
				"security.fuseoverlayfs.override_stat", "user.containers.override_stat", "trusted.overlayfs",
			},
			[]string{trusted.Opaque, trusted.Special},
		},
		{
			ovl.KernelForms(user), false,
			[]*ovl.Names{user},
			map[string]string{"user.overlay.opaque": "user.overlay.overlay.opaque"},
			[]string{"trusted.overlay.opaque", "user.fuseoverlayfs.opaque", "user.containers.override_stat"},
			[]string{user.Opaque, user.Special},
		},
	} {
		if c.forms.All() != c.all || !slices.Equal(c.forms.Namespaces(), c.namespaces) {
			t.Errorf("%v: all %v, namespaces %v", c.forms, c.forms.All(), c.forms.Namespaces())
		}
		for _, name := range c.plain {
			c.escaped[name] = name
		}
		for seen, disk := range c.escaped {
			if got := c.forms.EscapeXattr(seen); got != disk {
				t.Errorf("%v: %s is kept as %s, want %s", c.forms, seen, got, disk)
			}
			if got, visible := c.forms.UnescapeXattr(disk); got != seen || !visible {
				t.Errorf("%v: %s is seen as %q, %v; want %s", c.forms, disk, got, visible, seen)
			}
		}
		for _, disk := range c.private {
			if seen, visible := c.forms.UnescapeXattr(disk); visible || seen != "" {
				t.Errorf("%v: %s is seen as %q, %v", c.forms, disk, seen, visible)
			}
		}
	}
}
