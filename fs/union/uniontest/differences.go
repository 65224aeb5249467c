package uniontest

// Difference is a behaviour in which plyfs departs from the kernel's overlayfs on purpose.
type Difference struct {
	// ID is the heading under which docs/semantics.md explains it.
	ID string
	// Kernel and Plyfs say what each does, Why why plyfs does otherwise.
	Kernel, Plyfs, Why string
}

// Differences returns all of them, sorted by ID. A case that depends on one calls C.Differs.
func Differences() []Difference {
	return []Difference{
		{
			"aufs-whiteouts",
			".wh.NAME files and .wh..wh..opq sentinels in layers are ordinary files",
			"they are whiteouts and opaque marks, as image unpackers write them",
			"containers/storage unpacks layers in this form whenever a mount program is set",
		},
		{
			"both-prefixes",
			"reads overlay attributes only in the namespace that the mount option userxattr selects",
			"reads trusted.overlay.* and user.overlay.*, and user.fuseoverlayfs.opaque, in every layer",
			"one store is used as root and rootless, and by fuse-overlayfs before",
		},
		{
			"directory-nlink",
			"every merged directory has a link count of 1",
			"a directory's link count is 2 plus its subdirectories, or 1 with static_nlink",
			"tools that prune a walk by the link count of a directory rely on it",
		},
		{
			"mapping-coherence",
			"a mapping or descriptor of a lower file never sees what is written after copy-up",
			"a descriptor sees it at once, a mapping too except of a file open in passthrough mode",
			"POSIX",
		},
		{
			"inotify-copy-up",
			"an inotify watch of a lower file is lost when the file is copied up",
			"the watch stays with the file",
			"POSIX applications keep watching one inode",
		},
		{
			"single-lower",
			"refuses a mount of one lower without an upper",
			"serves it read-only",
			"image mounts and views of one-layer images need no special case",
		},
		{
			"nested-whiteout",
			"an application's mknod of a 0:0 character device is refused with EPERM",
			"it is made, shown as a 0:0 character device and hides nothing",
			"an overlay inside the mount needs to store its whiteouts",
		},
		{
			"guest-wh-names",
			"names that begin .wh. are ordinary",
			"they are ordinary too, stored so that they do not become whiteouts; with whiteout=aufs as well",
			"fuse-overlayfs inside the mount needs to store its whiteouts",
		},
		{
			"rename-whiteout",
			"renameat2(RENAME_WHITEOUT) is refused with EINVAL",
			"it leaves a 0:0 character device of the application behind",
			"the kernel's overlayfs asks it of its upper",
		},
		{
			"rootless-redirect",
			"in a user namespace renaming a lower directory gives EXDEV and metadata changes copy all data",
			"redirect and metacopy work with user.overlay.* attributes",
			"containers without root rename directories too",
		},
		{
			"unlinked-lower-nlink",
			"fstat of a lower file that was unlinked while open reports a link count of 1",
			"it reports 0",
			"POSIX",
		},
		{
			"passthrough-locks",
			"a lock that was taken before copy-up holds after it",
			"in data=passthrough, a lock on a lower file does not hold against descriptors opened after its copy-up",
			"the kernel cannot change the file behind an open passthrough descriptor, so the copy is a new inode to it",
		},
		{
			"passthrough-fcntl",
			"a descriptor that fcntl(2) takes O_APPEND or O_DIRECT off writes without it",
			"in data=passthrough, it goes on appending, or demanding alignment, until it is closed",
			"the kernel gives the backing file the flags of the open, and never asks for them again",
		},
		{
			"passthrough-immutable",
			"an immutable file cannot be opened for writing",
			"in data=passthrough, one that was open before it became immutable can be written until it is closed; in data=noopen only the write is refused",
			"the kernel writes to the backing file, or opens, without asking the server",
		},
		{
			"rootless-inode",
			"in a user namespace, inode numbers change on copy-up where the file system has no handles",
			"those of symlinks, devices, FIFOs and sockets change at a remount after a rename or link; others never",
			"user.* attributes, which hold the origin, exist on files and directories alone",
		},
		{
			"stray-whiteout",
			"a whiteout in a directory that only one layer has is listed, though it cannot be looked up",
			"it is neither listed nor found",
			"readdir and lookup have to agree",
		},
	}
}

// Differs reports whether, in the behaviour of this Difference, the tree under test is to behave as plyfs; false means as
// the kernel's overlayfs. The identifier must be in Differences.
func (c *C) Differs(id string) bool {
	c.Helper()
	for _, d := range Differences() {
		if d.ID == id {
			return !c.Is(Kernel)
		}
	}
	c.Fatalf("no Difference is called %q", id)
	return false
}
