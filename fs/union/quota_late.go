package union

import (
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// What an object takes up may change after its last operation was settled, because file systems allocate space, and the blocks that
// map it, when they write data back. So the account remembers how much of each changed object it holds. The next look at the object
// corrects that; its removal gives back exactly what is held, and not what the object takes up by then.

// timing says when st_blocks is what it stays.
type timing uint8

const (
	// atOnce: when the operation returns (tmpfs; btrfs, where it counts what is mapped, compressed or not: cf. btrfs inode.c
	// btrfs_getattr and btrfs_update_inode_bytes).
	atOnce timing = iota
	// mapsLate: blocks that map the data come at write-back (cf. ext4 inode.c ext4_getattr, which adds only what is delayed).
	mapsLate
	// shrinksLate: also, what was written over shared blocks counts beside them until it takes their place (cf. xfs xfs_iops.c
	// xfs_vn_getattr, xfs_reflink.c xfs_reflink_end_cow).
	shrinksLate
	// dataLate: what was written is not there before write-back (zfs, NFS, and all that nobody knows better).
	dataLate
)

func timingOf(magic int64) timing {
	switch magic {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.HUGETLBFS_MAGIC, unix.BTRFS_SUPER_MAGIC:
		return atOnce
	case unix.EXT4_SUPER_MAGIC:
		return mapsLate
	case unix.XFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC:
		return shrinksLate
	}
	return dataLate
}

// sight is what one look at an object told.
type sight struct {
	bytes int64 // what it takes up now
	later int64 // with dataLate, what a file of its size may take up once it is written back; else 0
	spare int64 // how much of bytes may be gone by then
}

// expected is what to count for the object, of which no operation can have made it take up more than most.
func (s sight) expected(most int64) int64 { return max(s.bytes, min(most, s.later)) }

// look looks at the object at fd and name.
func (q *quota) look(fd int, name string) (sight, error) {
	var st unix.Statx_t
	if err := sys.Statx(fd, name, &st); err != nil {
		return sight{}, err
	}
	return q.sightOf(fd, name, &st), nil
}

func (q *quota) sightOf(fd int, name string, st *unix.Statx_t) sight {
	s := sight{bytes: q.allocated(fd, name, st)}
	if q.timing == dataLate && uint32(st.Mode)&unix.S_IFMT == unix.S_IFREG {
		// The block of such a file system may be a megabyte, which a small file does not need.
		const page = 4096
		s.later = int64(min(st.Size, 1<<60)+page-1) / page * page
		if s.later > q.block {
			s.later = q.roundUp(s.later)
		}
		s.spare = max(s.bytes-s.later, 0)
	}
	return s
}

// doubt notes that this much of counted, which was just written, may turn out not to be there after write-back. Precondition: mu is
// held.
func (q *quota) doubt(bytes int64) {
	if q.timing >= shrinksLate {
		q.doubted += bytes
	}
}

// punched notes that an operation gives back up to length bytes, which not every file system shows at once.
func (q *quota) punched(length int64) {
	if q == nil || q.timing != dataLate || length <= 0 {
		return
	}
	q.mu.Lock()
	q.doubted += min(length, q.counted.bytes)
	q.mu.Unlock()
}

// remember notes what counted holds of n, which was made or replaced, unless somebody changes it already. Precondition: mu is
// held, within an operation.
func (q *quota) remember(n *Node, bytes int64) {
	if len(q.parted) > 0 {
		delete(q.parted, n.Ino()) // of another object that had the number
	}
	if _, known := q.sizes[n]; !known && q.ledgers[n] == nil {
		q.sizes[n] = bytes
	}
}

// baseline is what counted holds of n, if that is known. What was remembered of a node that is gone is forgotten: the caller
// remembers it from now on. Precondition: mu is held.
func (q *quota) baseline(n *Node) (bytes int64, known bool) {
	if bytes, known = q.sizes[n]; known || len(q.parted) == 0 {
		return bytes, known
	}
	bytes, known = q.parted[n.Ino()]
	delete(q.parted, n.Ino())
	return bytes, known
}

// manyParted bounds how many objects are remembered that no node stands for.
const manyParted = 1 << 14

// part remembers what counted holds of the object of n, a node that goes. Precondition: mu is held.
func (q *quota) part(n *Node, bytes int64) {
	if q.timing == atOnce {
		return
	}
	if len(q.parted) >= manyParted {
		for ino, had := range q.parted { // any
			delete(q.parted, ino)
			q.lose(had)
			break
		}
	}
	q.parted[n.Ino()] = bytes
}

// lose is called when it is forgotten that counted holds had bytes of an object. Write-back may have added blocks since, which the
// removal of the object will be seen to give back: they are counted now. Precondition: mu is held.
func (q *quota) lose(had int64) {
	may := int64(0)
	// A map of up to four extents lies in the inode. A block of it has room for hundreds (ext4), at worst half used.
	if had > 4*q.block {
		may = q.block + had/128
	}
	q.counted.bytes += may
	q.doubted += may
	if q.timing == dataLate {
		q.doubted += had
	}
}

const (
	// A recount that late changes call for is due when this many times as long has passed as the last one took ...
	recountPause = 20
	// ... or when this part of the limit is in doubt, and something for every inode that will be looked at.
	recountPart = 8
)

// remedy is what an operation for which there is no room can do to find some.
type remedy uint8

const (
	noRemedy remedy = iota
	countAgain
	writeBackAndCount
)

// remedyFor says whether a recount could make room for need, and is due. Precondition: mu is held.
func (q *quota) remedyFor(need amount) remedy {
	least := q.counted
	least.sub(q.slack)
	if q.slack != (amount{}) && q.fits(least, need) {
		return countAgain
	}
	late := q.doubted - q.cleared
	if least.bytes = max(least.bytes-late, 0); late == 0 || !q.fits(least, need) {
		return noRemedy
	}
	enough := q.limit.Bytes/recountPart + q.counted.inodes*statBlock
	if late < enough && time.Since(q.recounted) < recountPause*q.took {
		return noRemedy
	}
	return writeBackAndCount
}

// findOut takes need if a recount makes room for it, and reports whether it did. It blocks for the recount; one recount serves all
// that wait. Precondition: no lock is held.
func (q *quota) findOut(need amount) (bool, error) {
	q.mu.Lock()
	for q.finding != nil {
		other := q.finding
		q.mu.Unlock()
		<-other
		if q.take(need) {
			return true, nil
		}
		q.mu.Lock()
	}
	how := q.remedyFor(need)
	if how == noRemedy {
		q.mu.Unlock()
		return false, nil
	}
	done := make(chan struct{})
	q.finding = done
	q.mu.Unlock()
	var err error
	if how == countAgain {
		err = q.recount(0)
	} else {
		err = q.recountWritten()
	}
	q.mu.Lock()
	q.finding = nil
	q.mu.Unlock()
	close(done)
	if err != nil {
		return false, err
	}
	return q.take(need), nil
}

// recountWritten is recount after everything was written back.
func (q *quota) recountWritten() error {
	begin := time.Now()
	q.mu.Lock()
	doubted := q.doubted
	q.mu.Unlock()
	q.writeBack()
	err := q.recount(doubted)
	q.mu.Lock()
	q.recounted = time.Now()
	q.took = q.recounted.Sub(begin)
	q.mu.Unlock()
	return err
}

// writeBack makes the file system show what everything that was written takes up, as its own quota would before it refuses (cf.
// btrfs qgroup.c try_flush_qgroup). No lock is held.
func (q *quota) writeBack() {
	if q.timing < shrinksLate {
		return
	}
	// A descriptor of its own: an error is told once to each, and others must learn of it.
	fd, err := sys.Openat(q.u.upper.FD(), ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err == nil {
		err = q.u.m.Syncfs(fd)
		unix.Close(fd)
	}
	if err != nil {
		q.u.log.Warn("cannot write back before the upper is counted", "upper", q.u.upper.Path, "err", err)
	}
}
