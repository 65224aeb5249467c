// Package layer is one layer of a union behind a directory descriptor: how its entries are reached, listed and
// described. It knows the ownership attributes of fuse-overlayfs's xattr_permissions, and it keeps the descriptors of a
// whole mount within a bound (Cache).
//
// No path is resolved from the process's root or working directory after Open: everything is relative to a layer's
// descriptor, and no symlink is ever followed. The only lock is Cache.mu, a leaf.
package layer
