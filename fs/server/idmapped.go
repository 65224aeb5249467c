package server

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"plyfs/fs/mountopt"
)

const mountTable = "/proc/self/mountinfo"

// beneathIDMaps returns the lower directories of o, those on id-mapped mounts replaced by the same directories on mounts without a
// map, if o has a map of its own: both would apply, and every owner be nobody's. containers/storage 1.40 to 1.45 (podman 4.1 to 4.4)
// gives a mount program both whenever root runs a container with ids of its own (cf. its drivers/overlay/overlay.go, get); to others
// the map of the options is meant for what lies on the disk. A warning names each directory for which no other mount is found.
func beneathIDMaps(o mountopt.Options) (dirs, warnings []string) {
	dirs = o.LowerDirs
	if len(o.UIDMap) == 0 && len(o.GIDMap) == 0 {
		return dirs, nil
	}
	table, err := os.ReadFile(mountTable)
	if err != nil || !bytes.Contains(table, []byte("idmapped")) {
		return dirs, nil
	}
	mounts, err := mountinfo.GetMountsFromReader(bytes.NewReader(table), nil)
	if err != nil {
		return dirs, []string{fmt.Sprintf("%s: %v; lower directories on id-mapped mounts, if any, are mapped twice", mountTable, err)}
	}
	dirs = slices.Clone(dirs)
	for i, dir := range dirs {
		at, err := whereIs(dir)
		if err != nil {
			continue // whoever opens the layer says why not
		}
		m := slices.IndexFunc(mounts, func(m *mountinfo.Info) bool { return uint64(m.ID) == at.mount && idMapped(m) })
		if m < 0 {
			continue
		}
		if beneath, ok := at.elsewhere(mounts[m], mounts); ok {
			dirs[i] = beneath
			continue
		}
		warnings = append(warnings, fmt.Sprintf("lowerdir=%s is on an id-mapped mount, and uidmapping or gidmapping map its owners once more: "+
			"they may show as nobody's; leave one of the two away", dir))
	}
	return dirs, warnings
}

func idMapped(m *mountinfo.Info) bool {
	return slices.Contains(strings.Split(m.Options, ","), "idmapped")
}

// location is where a directory is: its path without symbolic links, the mount, and the inode.
type location struct {
	path       string
	mount      uint64
	major, min uint32
	ino        uint64
}

func whereIs(dir string) (location, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return location{}, err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_MNT_ID, &st); err != nil {
		return location{}, err
	}
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	return location{path: path, mount: st.Mnt_id, major: st.Dev_major, min: st.Dev_minor, ino: st.Ino}, err
}

// elsewhere finds the directory on another mount of the file system that on, its own, shows: one that is not id-mapped.
func (p location) elsewhere(on *mountinfo.Info, mounts []*mountinfo.Info) (path string, ok bool) {
	below, err := filepath.Rel(on.Mountpoint, p.path)
	if err != nil {
		return "", false
	}
	inside := filepath.Join(on.Root, below)
	for _, m := range mounts {
		if m.Major != on.Major || m.Minor != on.Minor || idMapped(m) {
			continue
		}
		rest, err := filepath.Rel(m.Root, inside)
		if err != nil || !filepath.IsLocal(rest) {
			continue
		}
		// Something else may be mounted over it.
		path := filepath.Join(m.Mountpoint, rest)
		other, err := whereIs(path)
		if err == nil && other.mount == uint64(m.ID) && other.major == p.major && other.min == p.min && other.ino == p.ino {
			return path, true
		}
	}
	return "", false
}
