package ovl

import "strings"

const (
	nsTrusted  = "trusted.overlay."
	nsUser     = "user.overlay."
	nsFuse     = "user.fuseoverlayfs."
	nsSecFuse  = "security.fuseoverlayfs."
	nsOverride = "user.containers.override_"
	escape     = "overlay."
	fuseEscape = "fuseoverlayfs."
)

// EscapeXattr maps the name of an attribute as an application sees it to its name on disk. Names of the union's own
// namespaces get one level of escape (cf. overlayfs xattrs.c ovl_xattr_escape_name), so that a nested overlay can keep
// its attributes and cannot forge ours; all others are returned as they are.
func EscapeXattr(name string) string {
	switch {
	case strings.HasPrefix(name, nsTrusted):
		return nsTrusted + escape + name[len(nsTrusted):]
	case strings.HasPrefix(name, nsUser):
		return nsUser + escape + name[len(nsUser):]
	case strings.HasPrefix(name, nsFuse):
		return nsFuse + fuseEscape + name[len(nsFuse):]
	case strings.HasPrefix(name, nsSecFuse):
		return nsSecFuse + fuseEscape + name[len(nsSecFuse):]
	case strings.HasPrefix(name, nsOverride):
		return nsOverride + name
	}
	return name
}

// UnescapeXattr maps a name on disk to the one an application sees; visible is false for the union's own attributes.
func UnescapeXattr(name string) (seen string, visible bool) {
	for _, ns := range [...]string{nsTrusted, nsUser} {
		if rest, ok := strings.CutPrefix(name, ns); ok {
			if rest, ok = strings.CutPrefix(rest, escape); ok {
				return ns + rest, true
			}
			return "", false
		}
	}
	for _, ns := range [...]string{nsFuse, nsSecFuse} {
		if rest, ok := strings.CutPrefix(name, ns); ok {
			if rest, ok = strings.CutPrefix(rest, fuseEscape); ok {
				return ns + rest, true
			}
			return "", false
		}
	}
	if rest, ok := strings.CutPrefix(name, nsOverride); ok {
		if strings.HasPrefix(rest, nsOverride) {
			return rest, true
		}
		return "", false
	}
	return name, true
}

// ProtectedXattr says whether the namespace of name needs a privilege that a store of xattr_permissions has not:
// such attributes are kept under OverrideXattr.
func ProtectedXattr(name string) bool {
	return strings.HasPrefix(name, "security.") || strings.HasPrefix(name, "trusted.") ||
		strings.HasPrefix(name, "system.")
}

// OverrideXattr is the name under which a store of xattr_permissions=2 keeps the protected attribute name.
func OverrideXattr(name string) string { return nsOverride + name }

// FromOverrideXattr is the inverse of OverrideXattr.
func FromOverrideXattr(disk string) (name string, ok bool) {
	rest, ok := strings.CutPrefix(disk, nsOverride)
	if !ok || !ProtectedXattr(rest) {
		return "", false
	}
	return rest, true
}
