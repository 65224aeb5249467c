// Package layer is one layer of a union behind a directory descriptor: how its entries are reached, listed and
// described. It knows the ownership attributes of fuse-overlayfs's xattr_permissions, and it keeps the descriptors of a
// whole mount within a bound (Cache).
//
// Whose directory it is decides how it is opened. A layer that a union stacks, or a store of such layers, is for Open. What somebody else
// has stacked already, a mount or anything that a driver's Get returns, is for OpenPlain, and so is a layer that the kernel stacks: its
// attributes are an application's.
//
// No path is resolved from the process's root or working directory after Open: everything is relative to a layer's
// descriptor, and no symlink is ever followed. The only lock is Cache.mu, a leaf.
package layer
