// Package sys is the only place that talks to the kernel in raw form, but for package internal/launch/early, which does so before there
// is a runtime.
//
// It owns the system calls that golang.org/x/sys/unix does not offer, or offers only by path: extended attributes of
// an entry of a directory descriptor, file handles, reflinks, inode flags, the file system's UUID. It also owns
// Mutator, through which every call that changes a layer is made, so that a test can fail or kill at the i-th one.
// No other package imports unsafe. It takes no locks and keeps no state but what the running kernel can do.
package sys
