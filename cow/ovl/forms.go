package ovl

import "strings"

// Forms are the forms in which whoever mounts a layer takes names and attributes for the union's own. All others are an
// application's: not to be believed, and shown as they are. The zero value is all forms, which plyfs reads in any layer.
type Forms struct{ kernel *Names }

// KernelForms are what an overlay of the kernel reads that is mounted with the namespace n: its attributes and 0:0
// devices, neither the AUFS form nor another namespace nor what fuse-overlayfs writes.
func KernelForms(n *Names) Forms { return Forms{kernel: n} }

// All says whether all forms are read, those of AUFS and of fuse-overlayfs among them.
func (f Forms) All() bool { return f.kernel == nil }

var (
	bothNamespaces = []*Names{trusted, user}
	onlyTrusted    = bothNamespaces[:1:1]
	onlyUser       = bothNamespaces[1:]
)

// Namespaces are those whose attributes are read. The slice belongs to the package.
func (f Forms) Namespaces() []*Names {
	switch f.kernel {
	case nil:
		return bothNamespaces
	case user:
		return onlyUser
	}
	return onlyTrusted
}

// prefix is what the kernel escapes.
func (f Forms) prefix() string {
	if f.kernel == user {
		return nsUser
	}
	return nsTrusted
}

// EscapeXattr is the function EscapeXattr for these forms: the names on disk are those that their reader unescapes.
func (f Forms) EscapeXattr(name string) string {
	if f.All() {
		return EscapeXattr(name)
	}
	if rest, ok := strings.CutPrefix(name, f.prefix()); ok {
		return f.prefix() + escape + rest
	}
	return name
}

// UnescapeXattr is the function UnescapeXattr for these forms.
func (f Forms) UnescapeXattr(name string) (seen string, visible bool) {
	if f.All() {
		return UnescapeXattr(name)
	}
	rest, own := strings.CutPrefix(name, f.prefix())
	if !own {
		return name, true
	}
	if rest, own = strings.CutPrefix(rest, escape); own {
		return f.prefix() + rest, true
	}
	return "", false
}
