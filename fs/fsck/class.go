package fsck

// Class is what is wrong, as a word that stays the same over releases: scripts may depend on it.
type Class string

// Classes of findings in the upper.
const (
	// WhiteoutWithoutVictim: no lower has what the whiteout hides. It does no harm. Repair removes it.
	WhiteoutWithoutVictim Class = "whiteout-without-victim"
	// WhiteoutInOpaque: the directory of the whiteout hides the lowers already, and the kernel's overlayfs lists the
	// whiteout as an entry. Repair removes it.
	WhiteoutInOpaque Class = "whiteout-in-opaque"
	// OpaqueWithoutLower: the directory hides lowers of which none has it. It does no harm, and the kernel's overlayfs
	// makes each new directory so: one finding stands for all. Not repaired.
	OpaqueWithoutLower Class = "opaque-without-lower"
	// OpaqueTwice: the AUFS sentinel lies in a directory that an attribute makes opaque. Repair removes the sentinel.
	OpaqueTwice Class = "opaque-twice"
	// RedirectMalformed: the value is no path within a layer, and what carries it can't be used. Repair makes a
	// directory opaque instead, so that it shows what the upper holds of it; a file is left alone.
	RedirectMalformed Class = "redirect-malformed"
	// RedirectDangling: the lowers have no such directory. Repair makes the directory opaque instead, which shows the
	// same.
	RedirectDangling Class = "redirect-dangling"
	// RedirectShared: the same lower directory is shown at another place too. Not repaired.
	RedirectShared Class = "redirect-shared"
	// RedirectLoop: the lower directory is that of a directory above, which so contains itself. Not repaired.
	RedirectLoop Class = "redirect-loop"
	// MetacopyWithoutData: a metadata-only copy whose data no lower has: reading it fails. Not repaired.
	MetacopyWithoutData Class = "metacopy-without-data"
	// MetacopyNotRegular: only a regular file can be a metadata-only copy. Repair takes the mark off.
	MetacopyNotRegular Class = "metacopy-not-regular"
	// MetacopyMalformed: the kernel's overlayfs refuses the file. Repair writes the empty value.
	MetacopyMalformed Class = "metacopy-malformed"
	// OriginMalformed: the attribute names no inode, so that the inode number is not kept. Repair removes it.
	OriginMalformed Class = "origin-malformed"
	// ImpureUnmarked: the directory holds objects with an origin and does not say so, so that readdir and stat of the
	// kernel's overlayfs may disagree on inode numbers. Repair marks it.
	ImpureUnmarked Class = "impure-unmarked"
	// SpecialsUnmarked: the directory holds escaped devices and does not say so: they show as empty files. Repair marks
	// it.
	SpecialsUnmarked Class = "specials-unmarked"
	// NlinkMalformed: the link count attribute can't be read. Repair writes the count, or removes the attribute where
	// the file is in no index.
	NlinkMalformed Class = "nlink-malformed"
	// UnsyncedMark: a copied-up file whose data may not be on disk, after a mount that did not end cleanly. Marks of this
	// boot are a note, and repair syncs the file; after a power cut they are errors, and repair gives the file its
	// lower's content, as the next mount would.
	UnsyncedMark Class = "unsynced-mark"
	// UnsyncedMarkMalformed: the mark does not say which lower file was copied. Not repaired.
	UnsyncedMarkMalformed Class = "unsynced-mark-malformed"
	// HiddenName: an object whose name or form plyfs takes for metadata of AUFS, and does not show. Not repaired.
	HiddenName Class = "hidden-name"
	// LowersDiffer: the upper says that it was used over another topmost lower. Nothing is repaired whose repair depends
	// on what the lowers hold.
	LowersDiffer Class = "lowers-differ"
	// Unreadable: an object could not be looked at. Not repaired.
	Unreadable Class = "unreadable"
)

// Classes of findings in the work directory.
const (
	// StagedLeftover: what a mount that is gone was about to publish. The next mount, or repair, removes it.
	StagedLeftover Class = "staged-leftover"
	// VolatileMarker: a volatile mount of this upper ended, cleanly or not, and nothing was ever synced. Mounts refuse
	// it. Not repaired.
	VolatileMarker Class = "volatile-marker"
	// IncompatMarker: a mount left the mark of another feature; the kernel's overlayfs refuses to mount. Not repaired.
	IncompatMarker Class = "incompat-marker"
	// UnsyncedRecord: the record that unsynced marks may exist. Repair removes it when no mark is left.
	UnsyncedRecord Class = "unsynced-record"
	// IndexNameMalformed: the name of the hard-link index entry is no file handle. Repair removes an entry whose file
	// has names in the upper.
	IndexNameMalformed Class = "index-name-malformed"
	// IndexOriginDiffers: the file in the hard-link index is a copy of another inode than its name says. Repair writes
	// an origin that is missing or malformed; another valid one is left alone.
	IndexOriginDiffers Class = "index-origin-differs"
	// IndexOrphan: the file in the hard-link index has no name in the union any more. Repair removes it if the lowers have
	// names of the file that it is a copy of, and the upper hides them all or the stored link count leaves them to the lowers.
	// A note if by the stored link count just names are left that the union does not look at.
	IndexOrphan Class = "index-orphan"
	// NlinkWrong: the stored link count is not the number of names in the union. Repair writes the right one.
	NlinkWrong Class = "nlink-wrong"
)

// Classes of findings in the index of the stack of lowers.
const (
	// StackIndexDiffers: an entry differs from the layers, or the index is damaged. Repair marks the index stale: mounts
	// read the layers, and build it anew.
	StackIndexDiffers Class = "stack-index-differs"
	// StackIndexUnreadable: a lower could not be compared with the index. Not repaired.
	StackIndexUnreadable Class = "stack-index-unreadable"
)

// Classes returns all classes, in the order of the documentation.
func Classes() []Class {
	return []Class{
		WhiteoutWithoutVictim, WhiteoutInOpaque, OpaqueWithoutLower, OpaqueTwice, RedirectMalformed, RedirectDangling,
		RedirectShared, RedirectLoop, MetacopyWithoutData, MetacopyNotRegular, MetacopyMalformed, OriginMalformed,
		ImpureUnmarked, SpecialsUnmarked, NlinkMalformed, UnsyncedMark, UnsyncedMarkMalformed, HiddenName, LowersDiffer,
		Unreadable, StagedLeftover, VolatileMarker, IncompatMarker, UnsyncedRecord, IndexNameMalformed, IndexOriginDiffers,
		IndexOrphan, NlinkWrong, StackIndexDiffers, StackIndexUnreadable,
	}
}
