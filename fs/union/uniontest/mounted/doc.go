// Package mounted has the implementations for uniontest that are mounts: the kernel's overlayfs and plyfs over FUSE. It
// reaches them by system calls beneath the mount point, as any program would. The plyfs server runs in a process of its
// own, since a process that uses its own FUSE mount can wait for itself for ever.
package mounted
