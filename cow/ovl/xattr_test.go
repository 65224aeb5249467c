package ovl_test

import (
	"testing"

	"plyfs/cow/ovl"
)

func TestEscapeXattr(t *testing.T) {
	for seen, disk := range map[string]string{
		"user.x":                              "user.x",
		"security.capability":                 "security.capability",
		"system.posix_acl_access":             "system.posix_acl_access",
		"trusted.overlay":                     "trusted.overlay",
		"trusted.overlayfs":                   "trusted.overlayfs",
		"user.containers.override":            "user.containers.override",
		"trusted.overlay.":                    "trusted.overlay.overlay.",
		"trusted.overlay.opaque":              "trusted.overlay.overlay.opaque",
		"user.overlay.origin":                 "user.overlay.overlay.origin",
		"trusted.overlay.plyfs.unsynced":      "trusted.overlay.overlay.plyfs.unsynced",
		"trusted.overlay.overlay.opaque":      "trusted.overlay.overlay.overlay.opaque",
		"user.fuseoverlayfs.opaque":           "user.fuseoverlayfs.fuseoverlayfs.opaque",
		"security.fuseoverlayfs.x":            "security.fuseoverlayfs.fuseoverlayfs.x",
		"user.containers.override_stat":       "user.containers.override_user.containers.override_stat",
		"user.containers.override_security.x": "user.containers.override_user.containers.override_security.x",
	} {
		if got := ovl.EscapeXattr(seen); got != disk {
			t.Errorf("%s is kept as %s, want %s", seen, got, disk)
		}
		if got, visible := ovl.UnescapeXattr(disk); got != seen || !visible {
			t.Errorf("%s is seen as %q, %v; want %s", disk, got, visible, seen)
		}
	}
}

func TestPrivateXattrs(t *testing.T) {
	private := []string{
		"trusted.overlay.opaque", "user.overlay.redirect", "trusted.overlay.", "user.overlay.overlayx", "user.overlay.plyfs.special",
		"user.fuseoverlayfs.origin", "security.fuseoverlayfs.override_stat",
		"user.containers.override_stat", "user.containers.override_security.capability", "user.containers.override_",
	}
	for _, name := range ovl.OverrideNames() {
		private = append(private, name)
	}
	for _, disk := range append(private, ovl.FuseOverlayfsOpaque, ovl.FuseOverlayfsOrigin) {
		if seen, visible := ovl.UnescapeXattr(disk); visible || seen != "" {
			t.Errorf("%s is seen as %q, %v", disk, seen, visible)
		}
	}
}

func TestOverrideXattr(t *testing.T) {
	for _, name := range []string{"security.capability", "trusted.x", "system.posix_acl_default", "trusted.overlay.opaque"} {
		if !ovl.ProtectedXattr(name) {
			t.Errorf("%s is not protected", name)
		}
		disk := ovl.OverrideXattr(name)
		if got, ok := ovl.FromOverrideXattr(disk); got != name || !ok {
			t.Errorf("%s is read back as %q, %v", disk, got, ok)
		}
		if _, visible := ovl.UnescapeXattr(disk); visible {
			t.Errorf("%s is visible under its name on disk", disk)
		}
	}
	for _, disk := range []string{
		"", "user.x", "security.capability", "user.containers.override_", "user.containers.override_stat",
		"user.containers.override_user.x", "user.containers.override_security", "user.containers.override_user.containers.override_stat",
	} {
		if name, ok := ovl.FromOverrideXattr(disk); ok {
			t.Errorf("%s is read as %q", disk, name)
		}
	}
	for _, name := range []string{"", "user.x", "security", "usertrusted.x"} {
		if ovl.ProtectedXattr(name) {
			t.Errorf("%q is protected", name)
		}
	}
}
