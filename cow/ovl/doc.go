// Package ovl knows the on-disk formats of an overlay layer and nothing else: how a deletion, an opaque directory, a
// redirect, a metadata-only copy, an origin and a hard-link index are written down by the kernel's overlayfs, by AUFS
// and OCI tar unpackers and by fuse-overlayfs, and how the same words of a nested overlay are escaped.
//
// All functions are pure. The package takes no locks, makes no system calls, and is (with cow/tarlayer) the only place
// where the literal names stand.
package ovl
