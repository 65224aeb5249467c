// Package exerciser makes long sequences of random operations on a union and compares every result with a model: what
// fsx does to one file and fsstress to a tree, but checked.
//
// A sequence follows from its seed. When a result differs, Shrink finds the shortest prefix that fails, and then what of
// it can be left out, by running parts of it on new trees. The package knows trees by uniontest.Tree alone, so that the
// same sequences run on the engine, on mounts and on the kernel's overlayfs.
package exerciser
