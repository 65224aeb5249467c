// Package demo holds the demonstration that `make demo` runs: a Debian root file system in six layers, used through
// plyfs, then through the kernel's overlayfs.
//
// demo.sh prepares and cleans up; layers.sh is what happens inside a mount and process namespace of its own; treecmp
// compares trees. The package has no code.
package demo
