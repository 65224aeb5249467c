package sys

import (
	"encoding/binary"
	"errors"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ioctls of include/uapi/linux/btrfs.h that work on subvolumes. Those that take a directory want it open for reading,
// not O_PATH.
const (
	btrfsIocTreeSearchV2   = 0xc0709411
	btrfsIocSnapDestroy    = 0x5000940f
	btrfsIocSnapCreateV2   = 0x50009417
	btrfsIocSubvolCreateV2 = 0x50009418
	btrfsIocSubvolGetFlags = 0x80089419
	btrfsIocSubvolSetFlags = 0x4008941a
	btrfsIocGetSubvolInfo  = 0x81f8943c
	btrfsIocSubvolRootRef  = 0xd000943d
	btrfsIocSubvolWait     = 0x40109441
	btrfsIocSync           = 0x9408
	btrfsIocInoLookupUser  = 0xd000943e

	btrfsSubvolReadOnly = 1 << 1
	btrfsFirstFree      = 256
)

// btrfsVolArgs is struct btrfs_ioctl_vol_args.
type btrfsVolArgs struct {
	_    int64
	name [4088]byte
}

// btrfsVolArgsV2 is struct btrfs_ioctl_vol_args_v2.
type btrfsVolArgsV2 struct {
	fd      int64
	transid uint64
	flags   uint64
	_       [4]uint64
	name    [4040]byte
}

// subvolName puts the name of a subvolume where the kernel reads it, with the zero that ends it.
func subvolName(dst []byte, name string) error {
	if name == "" || len(name) > unix.NAME_MAX || strings.ContainsAny(name, "/\x00") {
		return unix.EINVAL
	}
	copy(dst, name)
	return nil
}

// BtrfsCreate makes an empty subvolume called name in the directory dirfd. EEXIST if there is something of that name,
// ENOTTY where the directory is not on btrfs.
func BtrfsCreate(dirfd int, name string) error {
	var args btrfsVolArgsV2
	if err := subvolName(args.name[:], name); err != nil {
		return err
	}
	return Retry(func() error { return ioctlPtr(dirfd, btrfsIocSubvolCreateV2, unsafe.Pointer(&args)) })
}

// BtrfsSnapshot makes a writable snapshot of the subvolume whose root is open as src, called name in the directory dirfd.
// Subvolumes within src are not part of it: empty directories stand for them. It blocks until the file system has
// committed a transaction.
func BtrfsSnapshot(src, dirfd int, name string) error {
	args := btrfsVolArgsV2{fd: int64(src)}
	if err := subvolName(args.name[:], name); err != nil {
		return err
	}
	return Retry(func() error { return ioctlPtr(dirfd, btrfsIocSnapCreateV2, unsafe.Pointer(&args)) })
}

// BtrfsDestroy deletes the subvolume called name in the directory dirfd; its space is given back in the background.
// ENOTEMPTY if another subvolume is in it, EBUSY while something is mounted on it, EPERM for those without CAP_SYS_ADMIN
// where the file system is not mounted with user_subvol_rm_allowed.
func BtrfsDestroy(dirfd int, name string) error {
	var args btrfsVolArgs
	if err := subvolName(args.name[:], name); err != nil {
		return err
	}
	return Retry(func() error { return ioctlPtr(dirfd, btrfsIocSnapDestroy, unsafe.Pointer(&args)) })
}

// BtrfsSync is syncfs(2), and begins to give back the space of subvolumes that were destroyed, which otherwise may take half a
// minute.
func BtrfsSync(fd int) error {
	return Retry(func() error { return ioctlPtr(fd, btrfsIocSync, nil) })
}

// btrfsSubvolWait is struct btrfs_ioctl_subvol_wait.
type btrfsSubvolWait struct {
	id    uint64
	mode  uint32
	count uint32
}

// BtrfsDeleting says how many subvolumes of the file system that fd lies on were destroyed and still take up space. Kernels
// before 6.13 answer ENOTTY.
func BtrfsDeleting(fd int) (int, error) {
	const count = 2 // BTRFS_SUBVOL_SYNC_COUNT
	args := btrfsSubvolWait{mode: count}
	err := Retry(func() error { return ioctlPtr(fd, btrfsIocSubvolWait, unsafe.Pointer(&args)) })
	return int(args.count), err
}

// BtrfsOpen opens the root directory of the subvolume with the given id, on the file system that fd lies on, for reading,
// wherever its name is. ESTALE if there is none. It needs CAP_DAC_READ_SEARCH.
func BtrfsOpen(fd int, id uint64) (int, error) {
	// cf. btrfs export.h struct btrfs_fid: inode, tree, generation (0 for any).
	const (
		fileidBtrfsWithoutParent = 0x4d
		size                     = 20
	)
	var fid [size]byte
	binary.NativeEndian.PutUint64(fid[0:], btrfsFirstFree)
	binary.NativeEndian.PutUint64(fid[8:], id)
	var root int
	err := Retry(func() (err error) {
		root, err = unix.OpenByHandleAt(fd, unix.NewFileHandle(fileidBtrfsWithoutParent, fid[:]), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
		return err
	})
	if err != nil {
		return -1, err
	}
	return root, nil
}

// BtrfsReadOnly says whether the subvolume whose root is open as fd is read-only.
func BtrfsReadOnly(fd int) (bool, error) {
	var flags uint64
	err := ioctlPtr(fd, btrfsIocSubvolGetFlags, unsafe.Pointer(&flags))
	return flags&btrfsSubvolReadOnly != 0, err
}

// BtrfsSetReadOnly makes the subvolume whose root is open as fd refuse every change with EROFS, however it is reached.
func BtrfsSetReadOnly(fd int) error { return btrfsSetFlags(fd, btrfsSubvolReadOnly) }

// BtrfsSetWritable undoes BtrfsSetReadOnly.
func BtrfsSetWritable(fd int) error { return btrfsSetFlags(fd, 0) }

func btrfsSetFlags(fd int, flags uint64) error {
	return Retry(func() error { return ioctlPtr(fd, btrfsIocSubvolSetFlags, unsafe.Pointer(&flags)) })
}

// BtrfsInfo is what is known of a subvolume.
type BtrfsInfo struct {
	// ID is the number of its tree, and of its qgroup in level 0.
	ID uint64
	// Created is the number of the transaction that made it.
	Created uint64
	// UUID is unique; Parent is that of the subvolume of which this is a snapshot, zero for none.
	UUID, Parent [16]byte
}

// btrfsSubvolInfo is struct btrfs_ioctl_get_subvol_info_args.
type btrfsSubvolInfo struct {
	treeid       uint64
	name         [256]byte
	parentID     uint64
	dirid        uint64
	generation   uint64
	flags        uint64
	uuid         [16]byte
	parentUUID   [16]byte
	receivedUUID [16]byte
	ctransid     uint64
	otransid     uint64
	_            [2]uint64
	_            [4][2]uint64 // timestamps
	_            [8]uint64
}

// BtrfsSubvolume describes the subvolume that the open directory fd lies in. It needs Linux 4.18 and no privilege.
func BtrfsSubvolume(fd int) (BtrfsInfo, error) {
	var raw btrfsSubvolInfo
	if err := ioctlPtr(fd, btrfsIocGetSubvolInfo, unsafe.Pointer(&raw)); err != nil {
		return BtrfsInfo{}, err
	}
	return BtrfsInfo{ID: raw.treeid, Created: raw.otransid, UUID: raw.uuid, Parent: raw.parentUUID}, nil
}

// btrfsRootRefs is struct btrfs_ioctl_get_subvol_rootref_args.
type btrfsRootRefs struct {
	minTree uint64
	refs    [255]struct{ treeid, dirid uint64 }
	num     uint8
	_       [7]uint8
}

// btrfsLookupUser is struct btrfs_ioctl_ino_lookup_user_args.
type btrfsLookupUser struct {
	dirid  uint64
	treeid uint64
	name   [256]byte
	path   [3824]byte
}

// BtrfsNested returns the paths of the subvolumes directly within the subvolume whose root is open as fd, relative to it.
// Those that another process removes or moves meanwhile may be missing.
func BtrfsNested(fd int) ([]string, error) {
	var paths []string
	var args btrfsRootRefs
	for {
		err := Retry(func() error { return ioctlPtr(fd, btrfsIocSubvolRootRef, unsafe.Pointer(&args)) })
		// EOVERFLOW: these are full, and there are more.
		if err != nil && !errors.Is(err, unix.EOVERFLOW) {
			return nil, err
		}
		for _, ref := range args.refs[:args.num] {
			at := btrfsLookupUser{dirid: ref.dirid, treeid: ref.treeid}
			lookup := ioctlPtr(fd, btrfsIocInoLookupUser, unsafe.Pointer(&at))
			if errors.Is(lookup, unix.ENOENT) {
				continue
			}
			if lookup != nil {
				return nil, lookup
			}
			// The path ends with a slash where it is not empty.
			paths = append(paths, unix.ByteSliceToString(at.path[:])+unix.ByteSliceToString(at.name[:]))
		}
		if err == nil {
			return paths, nil
		}
	}
}

// The tree of trees and the item in it that leads from a subvolume to one within.
const (
	btrfsRootTree    = 1
	btrfsRootRefType = 156
)

// BtrfsChild is a subvolume within another.
type BtrfsChild struct {
	ID uint64
	// Name is the one that it has in its directory.
	Name string
}

// BtrfsChildren returns the subvolumes directly within that of the given id, on the file system that the open directory fd lies
// on. It needs CAP_SYS_ADMIN.
func BtrfsChildren(fd int, id uint64) ([]BtrfsChild, error) {
	// struct btrfs_root_ref: directory, sequence, length of the name, and then the name.
	const nameAt = 18
	var all []BtrfsChild
	err := BtrfsTreeSearch(fd, BtrfsSearch{
		Tree: btrfsRootTree, MinObject: id, MaxObject: id, MinType: btrfsRootRefType, MaxType: btrfsRootRefType,
		MaxOffset: ^uint64(0), MaxTransid: ^uint64(0),
	}, func(it BtrfsItem) error {
		if len(it.Data) < nameAt {
			return unix.EIO
		}
		all = append(all, BtrfsChild{ID: it.Offset, Name: string(it.Data[nameAt:])})
		return nil
	})
	return all, err
}

// BtrfsItem is an item of a tree: its key and where its data is.
type BtrfsItem struct {
	Object, Offset uint64
	Type           uint8
	// Data is valid until the callback returns.
	Data []byte
}

// BtrfsSearch bounds a search; both ends of a range belong to it.
type BtrfsSearch struct {
	// Tree is a tree's number, 0 for that of the subvolume searched through.
	Tree                   uint64
	MinObject, MaxObject   uint64
	MinType, MaxType       uint8
	MinOffset, MaxOffset   uint64
	MinTransid, MaxTransid uint64
}

// btrfsSearchArgs is struct btrfs_ioctl_search_args_v2 with its buffer.
type btrfsSearchArgs struct {
	tree                   uint64
	minObject, maxObject   uint64
	minOffset, maxOffset   uint64
	minTransid, maxTransid uint64
	minType, maxType       uint32
	items                  uint32
	_                      uint32
	_                      [4]uint64
	size                   uint64
	buf                    [btrfsSearchBuf]byte
}

const (
	btrfsSearchBuf    = 64 << 10
	btrfsSearchHeader = 32
)

// BtrfsTreeSearch calls fn for the items of a tree that lie in blocks changed in the given range of transactions and are
// of the types asked for, in the order of their keys, and ends at its first error. What fn is given are all items
// of such a block: those in it that are older fn must tell by their content. It needs CAP_SYS_ADMIN.
func BtrfsTreeSearch(fd int, s BtrfsSearch, fn func(BtrfsItem) error) error {
	args := &btrfsSearchArgs{
		tree: s.Tree, minObject: s.MinObject, maxObject: s.MaxObject, minOffset: s.MinOffset, maxOffset: s.MaxOffset,
		minTransid: s.MinTransid, maxTransid: s.MaxTransid, minType: uint32(s.MinType), maxType: uint32(s.MaxType),
	}
	for {
		args.items, args.size = ^uint32(0), btrfsSearchBuf
		if err := Retry(func() error { return ioctlPtr(fd, btrfsIocTreeSearchV2, unsafe.Pointer(args)) }); err != nil {
			return err
		}
		if args.items == 0 {
			return nil
		}
		var last BtrfsItem
		rest := args.buf[:]
		for range args.items {
			if len(rest) < btrfsSearchHeader {
				return unix.EIO
			}
			size := int(binary.NativeEndian.Uint32(rest[28:]))
			last = BtrfsItem{
				Object: binary.NativeEndian.Uint64(rest[8:]), Offset: binary.NativeEndian.Uint64(rest[16:]),
				Type: uint8(binary.NativeEndian.Uint32(rest[24:])),
			}
			rest = rest[btrfsSearchHeader:]
			if size > len(rest) {
				return unix.EIO
			}
			last.Data, rest = rest[:size:size], rest[size:]
			// The range of a search is one of whole keys: types outside lie between those of two objects.
			if last.Type < s.MinType || last.Type > s.MaxType {
				continue
			}
			if err := fn(last); err != nil {
				return err
			}
		}
		if !args.after(last) {
			return nil
		}
	}
}

// after moves the beginning of the search behind a key; false if there is nothing behind.
func (a *btrfsSearchArgs) after(last BtrfsItem) bool {
	a.minObject, a.minType, a.minOffset = last.Object, uint32(last.Type), last.Offset
	if a.minOffset++; a.minOffset != 0 {
		return true
	}
	if a.minType++; a.minType <= 255 {
		return true
	}
	a.minType = 0
	a.minObject++
	return a.minObject != 0 && a.minObject <= a.maxObject
}
