// Package server is the program that mounts, under any of its names: it reads the command line, starts the process that
// serves, mounts and serves, and ends with an exit code of mount(8), see package exit.
//
// A mount goes through these stages: the command line becomes a request (request.go), the request is carried to a daemon,
// which is this binary again, because a Go program can't fork (daemon.go); the daemon opens the layers and looks for all
// that would go wrong (layers.go, check.go, fuse.go), and only then mounts and serves (serve.go). The caller waits for the
// daemon's verdict, which is either that the mount serves or one line about why it can't. A process of the graph driver takes
// several such requests, one after the other (standby.go).
//
// Programs: plyfs-mount, which is small since every container waits for its start, and plyfs, which has the database of stack
// indexes besides. Where a mount of the former has an index, it becomes the latter before it has mounted anything (Indexes,
// HandOver).
//
// # Locks
//
//	server.ending    the device: held while it is made the mount, and through an unmount, which may take a second
//	controls.mu      the control socket; held while it is made and closed
//	stackIndex.mu    the timer of a build; let go of before a build is ended
//	indexBuild.mu    the builder; let go of before its end is awaited
//
// None of them is taken while another one is held.
package server
