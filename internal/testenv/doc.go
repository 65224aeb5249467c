// Package testenv is the surroundings in which tests that mount file systems run.
//
// Main runs a test binary in mount and PID namespaces of its own, with a tmpfs for scratch and a /dev/fuse that
// everyone may open, so that whatever a test leaves behind (mounts, loop devices, servers) dies with it and nothing of
// the machine changes. Within, the package hands out scratch directories, mounts the kernel's overlayfs, runs
// functions as another user, re-runs the binary in a user namespace, and checks that descriptors, mounts and processes
// are given back.
//
// Privileges that are missing fail a test; nothing here skips. The package is imported by tests only.
package testenv
