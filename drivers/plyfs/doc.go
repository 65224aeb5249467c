// Package plyfs is the driver of plyfs's own mounts: layers in the layout of overlay2, each served by a process of its
// own in userspace. It works where the kernel's overlayfs does not: without root, on network file systems, on top of
// another overlay, with quotas on every file system, and renames directories of an image in O(1).
//
// The server is the program plyfs (cmd/plyfs), started directly: mountopt.StandbyEnv says how it is told what to serve, and
// how it tells when it does. The server of a mount that is gone serves the next one, and a
// process that mounts more than once has one started in advance where none is free. Another mount program
// with the command line of fuse-overlayfs can be named (mount_program); then the conventions of containers/storage count, and
// the program ends by itself at some time after Put.
//
// A server outlives the process that started it. Which one serves a layer is written down in the run directory, so that
// Put of a later process can wait for its end: then all is in the upper, synced, and no mark is left. If a server is
// killed, Get detaches its dead mount and starts another; what was written is there, since a server keeps nothing back.
//
// Its own locks, of servers and pool, are leaves below those of overlaystore.
package plyfs
