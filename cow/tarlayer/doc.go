// Package tarlayer turns tar streams of OCI layers into directory trees and back.
//
// Apply unpacks a stream beneath a directory, Write makes a reproducible stream of changes, Compare finds the changes
// between two trees, Decompress and Compress do what their names say. A Source is what Write reads: a directory
// (DirSource) or a merged view that somebody else has. The package knows the whiteouts of streams and how drivers keep
// them; which layers there are, and what is above which, it does not. It keeps no state between calls, takes no lock
// that is held over I/O, and starts no program. All changes go through internal/sys.Mutator.
//
// # Confinement
//
// A stream is not to be trusted. Nothing outside the root is ever touched, by these rules:
//
//   - The root is a descriptor. Everything is done by one name in a directory beneath it that is held open, and no
//     call follows a symlink at that name: a symlink, a FIFO or a device where a file is to be made is removed, not
//     written to.
//   - The directory of a member is found by openat2(2). A symlink on the way is followed as within a container: the
//     root is its root (RESOLVE_IN_ROOT), so that an absolute target begins there and nothing is above it. This is
//     what docker and containerd do, in a chroot or by walking, and images need it: a layer with "lib/x" over one in
//     which lib is a symlink to usr/lib is common. What differs is that the kernel resolves and opens in one step,
//     so that nobody can exchange a directory for a symlink in between.
//   - Names are relative to the root with or without a slash in front. A name that leaves the root by its text
//     (dot-dot), a root that is no directory, a member below a file, and a symlink loop are errors.
//   - A hard link's target is found in the same way, and linked without being followed: a link to a symlink is a
//     second name of the symlink.
//   - The directory of a whiteout is reached through no symlink. What it deletes had this very name in the layers
//     below.
//   - Owners are numbers. Names of users in a stream are never looked up.
//
// # What is where already
//
// A member replaces what has its name, in this layer or in the tree, whatever the types; a directory merges with a
// directory, and then has the attributes of the member and no others. Later members win. Whiteouts speak of the layers
// below only, wherever they come in the stream: a file of the same layer survives its own whiteout, and a directory
// becomes opaque by it. In stacked form there are no whiteouts beneath opaque directories, since the kernel would show
// them.
//
// Directories get their times, default ACLs and modes that would forbid work in them when the stream is over. A
// directory that a stream needs and does not have is made as ApplyOptions.Lower has it, else with mode 0755 and the
// time of the first member in it. One that exists and is not a member keeps its times.
//
// # Goroutines
//
// Apply moves a stream in batches through three goroutines: a scanner reads and takes it apart, the caller's makes
// names, a finisher fills small files and gives them their attributes, by descriptors alone. What order means is thereby
// decided in one goroutine, and most of the time goes to the kernel, which does the work of the last two side by side.
// Plain header blocks are read by PlainHeader, and all others by archive/tar.
//
// # Attributes
//
// Extended attributes come as SCHILY.xattr records. Applied are user attributes, file capabilities, POSIX ACLs (their
// ids mapped as owners are) and those of overlays. The last ones have a meaning in a stacked directory, and are escaped
// there as the kernel does for a nested overlay: an image made inside a container, of another engine's storage, must
// come out as it was and must not turn into whiteouts of the outer layer. For the same reason a 0:0 character device
// becomes the mark that plyfs has for one which an application made. Other trusted attributes are for programs of the
// machine, and no engine writes them into layers: they are left out with a note unless the stream is this machine's own
// (ApplyOptions.KeepTrusted). Labels of security modules are the machine's business and are left out.
//
// # Streams
//
// Write sorts by name, parents first and whiteouts before their siblings; writes ustar, with PAX records only for what
// that can't say; no access and change times, no names of users; times in whole seconds, as docker, containerd and
// umoci do; holes as zeros. The first name of a file with several is the file, the others are links. Sockets, and names
// that would be whiteouts, have no form in a layer and are left out with a note.
package tarlayer
