// Package overlay2 is the driver of the kernel's overlayfs: layers in the layout of moby's driver of the same name,
// mounted by the kernel. It is the fastest driver where the kernel lets it work: for root on most local file systems,
// and since Linux 5.11 for the root of a user namespace, whose layers carry user.overlay attributes instead of trusted
// ones.
//
// Differences are read from the upper directory (upperdiff). Mounts are made without redirect_dir, metacopy and index
// unless the option mountopt says otherwise; whatever a layer holds of them is understood.
//
// The packages overlaystore and upperdiff do the work; this one knows the mount's options and finds out whether
// the kernel takes them. It has no locks.
package overlay2
