package sys

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The commands of include/uapi/linux/dm-ioctl.h, without the part that all of them share.
const (
	dmVersion       = 0
	dmListDevices   = 2
	dmDevCreate     = 3
	dmDevRemove     = 4
	dmDevSuspend    = 6
	dmDevStatus     = 7
	dmTableLoad     = 9
	dmTableStatus   = 12
	dmTargetMessage = 14
	dmTargetVersion = 17
)

// dmIoctl is _IOWR(0xfd, 0, struct dm_ioctl).
const dmIoctl = 0xc138fd00

// Flags of struct dm_ioctl.
const (
	dmFlagSuspend        = 1 << 1
	dmFlagActivePresent  = 1 << 5
	dmFlagBufferFull     = 1 << 8
	dmFlagSkipLockFS     = 1 << 10
	dmFlagNoFlush        = 1 << 11
	dmFlagDataOut        = 1 << 16
	dmFlagDeferredRemove = 1 << 17
)

// Layout of struct dm_ioctl, of struct dm_target_spec, and of struct dm_target_msg.
const (
	dmHeader     = 312
	dmNameAt     = 48
	dmNameLen    = 128
	dmUUIDAt     = 176
	dmUUIDLen    = 129
	dmSpec       = 40
	dmSpecTypeAt = 24
	dmTypeLen    = 16
	dmMessageAt  = 8
)

// dmUdevFlags has udev's rules leave a device alone: no scan for what is on it, no links. They are what libdm calls
// DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG, _DISK_RULES_ and _OTHER_RULES_, in the upper half of a cookie.
const dmUdevFlags = (2 | 4 | 8) << 16

// The buffer that an answer is first asked for in, and the largest.
const (
	dmFirstBuffer = 16 << 10
	dmMaxBuffer   = 4 << 20
)

// DMTarget is a line of a device's table.
type DMTarget struct {
	// Start and Length are in sectors of 512 bytes.
	Start, Length uint64
	Type          string
	// Params are the parameters; in an answer of DMStatus, what the target says of its state.
	Params string
}

// DMInfo is what the kernel tells of a device.
type DMInfo struct {
	Name, UUID string
	// Dev is the device number, as in st_rdev.
	Dev uint64
	// Open counts who has the device open, mounts and other devices included.
	Open int
	// Live says that the device has a table; Suspended that it holds all I/O back; Leaving that it is removed with
	// its last user.
	Live, Suspended, Leaving bool
}

// dmRequest is struct dm_ioctl and what follows it.
type dmRequest []byte

func newDMRequest(name, uuid string, flags uint32, size int) (dmRequest, error) {
	if len(name) >= dmNameLen || len(uuid) >= dmUUIDLen || strings.ContainsAny(name+uuid, "\x00/") {
		return nil, unix.EINVAL
	}
	b := make(dmRequest, dmHeader+size)
	ne := binary.NativeEndian
	// The oldest version with all that is used here: deferred removal came with 4.27.
	ne.PutUint32(b[0:], 4)
	ne.PutUint32(b[4:], 27)
	ne.PutUint32(b[12:], uint32(len(b)))
	ne.PutUint32(b[16:], dmHeader)
	ne.PutUint32(b[28:], flags)
	copy(b[dmNameAt:], name)
	copy(b[dmUUIDAt:], uuid)
	return b, nil
}

func (b dmRequest) call(ctl int, command uintptr) error {
	return Retry(func() error { return ioctlPtr(ctl, dmIoctl|command, unsafe.Pointer(&b[0])) })
}

func (b dmRequest) flags() uint32 { return binary.NativeEndian.Uint32(b[28:]) }

// data is what the kernel put behind the header.
func (b dmRequest) data() ([]byte, error) {
	start, end := int(binary.NativeEndian.Uint32(b[16:])), int(binary.NativeEndian.Uint32(b[12:]))
	if start > end || end > len(b) {
		return nil, unix.EIO
	}
	return b[start:end], nil
}

func (b dmRequest) info() DMInfo {
	flags := b.flags()
	return DMInfo{
		Name: unix.ByteSliceToString(b[dmNameAt : dmNameAt+dmNameLen]),
		UUID: unix.ByteSliceToString(b[dmUUIDAt : dmUUIDAt+dmUUIDLen]),
		Dev:  binary.NativeEndian.Uint64(b[40:]),
		Open: int(int32(binary.NativeEndian.Uint32(b[24:]))),
		Live: flags&dmFlagActivePresent != 0, Suspended: flags&dmFlagSuspend != 0,
		Leaving: flags&dmFlagDeferredRemove != 0,
	}
}

// dmSimple makes a request that is answered by a header.
func dmSimple(ctl int, command uintptr, name, uuid string, flags, event uint32) (DMInfo, error) {
	b, err := newDMRequest(name, uuid, flags, 0)
	if err != nil {
		return DMInfo{}, err
	}
	binary.NativeEndian.PutUint32(b[36:], event)
	if err := b.call(ctl, command); err != nil {
		return DMInfo{}, err
	}
	return b.info(), nil
}

// DMVersion is the version of the device mapper's interface. ctl is /dev/mapper/control, here and in all that
// follows; all want CAP_SYS_ADMIN in the initial user namespace.
func DMVersion(ctl int) (version [3]uint32, err error) {
	b, err := newDMRequest("", "", 0, 0)
	if err != nil {
		return version, err
	}
	err = b.call(ctl, dmVersion)
	for i := range version {
		version[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return version, err
}

// DMTargetVersion is the version of a type of target, whose module the kernel loads if it can. EINVAL if there is
// none; ENOTTY before Linux 5.4.
func DMTargetVersion(ctl int, target string) (version [3]uint32, err error) {
	if len(target) >= dmTypeLen {
		return version, unix.EINVAL
	}
	b, err := newDMRequest(target, "", 0, 4096)
	if err != nil {
		return version, err
	}
	if err := b.call(ctl, dmTargetVersion); err != nil {
		return version, err
	}
	// struct dm_target_versions: next, version, name.
	data, err := b.data()
	if err != nil || len(data) < 16 {
		return version, errors.Join(unix.EIO, err)
	}
	for i := range version {
		version[i] = binary.NativeEndian.Uint32(data[4+4*i:])
	}
	return version, nil
}

// DMCreate makes a device without a table. EBUSY if there is one of that name or UUID.
func DMCreate(ctl int, name, uuid string) (DMInfo, error) {
	return dmSimple(ctl, dmDevCreate, name, uuid, 0, 0)
}

// DMRemove removes a device. EBUSY while it is in use, ENXIO if there is none.
func DMRemove(ctl int, name string) error {
	_, err := dmSimple(ctl, dmDevRemove, name, "", 0, dmUdevFlags)
	return err
}

// DMRemoveLater removes a device with its last user, or at once. ENXIO if there is none.
func DMRemoveLater(ctl int, name string) error {
	_, err := dmSimple(ctl, dmDevRemove, name, "", dmFlagDeferredRemove, dmUdevFlags)
	return err
}

// DMStat describes a device. ENXIO if there is none.
func DMStat(ctl int, name string) (DMInfo, error) {
	return dmSimple(ctl, dmDevStatus, name, "", 0, 0)
}

// DMSuspend holds all I/O of a device back, after what is under way is done and a file system on it is consistent.
func DMSuspend(ctl int, name string) error {
	_, err := dmSimple(ctl, dmDevSuspend, name, "", dmFlagSuspend, 0)
	return err
}

// DMResume makes the table that was loaded last the device's, and lets I/O pass.
func DMResume(ctl int, name string) error {
	_, err := dmSimple(ctl, dmDevSuspend, name, "", dmFlagSkipLockFS|dmFlagNoFlush, dmUdevFlags)
	return err
}

// DMLoad gives a device a table, which counts from the next DMResume.
func DMLoad(ctl int, name string, table []DMTarget) error {
	var body []byte
	for _, t := range table {
		if len(t.Type) >= dmTypeLen || strings.ContainsRune(t.Params, 0) {
			return unix.EINVAL
		}
		size := (dmSpec + len(t.Params) + 1 + 7) &^ 7
		spec := make([]byte, size)
		ne := binary.NativeEndian
		ne.PutUint64(spec[0:], t.Start)
		ne.PutUint64(spec[8:], t.Length)
		ne.PutUint32(spec[20:], uint32(size))
		copy(spec[dmSpecTypeAt:], t.Type)
		copy(spec[dmSpec:], t.Params)
		body = append(body, spec...)
	}
	b, err := newDMRequest(name, "", 0, len(body))
	if err != nil {
		return err
	}
	binary.NativeEndian.PutUint32(b[20:], uint32(len(table)))
	copy(b[dmHeader:], body)
	return b.call(ctl, dmTableLoad)
}

// DMMessage sends a message to the target at a sector, and returns the answer of those that give one. It blocks as
// long as the target takes.
func DMMessage(ctl int, name string, sector uint64, message string) (string, error) {
	if strings.ContainsRune(message, 0) {
		return "", unix.EINVAL
	}
	b, err := newDMRequest(name, "", 0, max(dmMessageAt+len(message)+1, 4096))
	if err != nil {
		return "", err
	}
	binary.NativeEndian.PutUint64(b[dmHeader:], sector)
	copy(b[dmHeader+dmMessageAt:], message)
	if err := b.call(ctl, dmTargetMessage); err != nil || b.flags()&dmFlagDataOut == 0 {
		return "", err
	}
	data, err := b.data()
	return unix.ByteSliceToString(data), err
}

// DMStatus returns what the targets of a device say of their state.
func DMStatus(ctl int, name string) ([]DMTarget, error) {
	b, err := dmGrowing(ctl, dmTableStatus, name, dmFlagNoFlush)
	if err != nil {
		return nil, err
	}
	rest, err := b.data()
	if err != nil {
		return nil, err
	}
	all := rest
	targets := make([]DMTarget, 0, 1)
	for range binary.NativeEndian.Uint32(b[20:]) {
		if len(rest) < dmSpec {
			return nil, unix.EIO
		}
		// In an answer, next counts from the first one; that of the last leads beyond the end.
		next := min(int(binary.NativeEndian.Uint32(rest[20:])), len(all))
		params := rest[dmSpec:]
		if end := bytes.IndexByte(params, 0); end >= 0 {
			params = params[:end]
		}
		targets = append(targets, DMTarget{
			Start: binary.NativeEndian.Uint64(rest[0:]), Length: binary.NativeEndian.Uint64(rest[8:]),
			Type: unix.ByteSliceToString(rest[dmSpecTypeAt:dmSpec]), Params: string(params),
		})
		rest = all[next:]
	}
	return targets, nil
}

// DMList returns the names of all devices.
func DMList(ctl int) ([]string, error) {
	b, err := dmGrowing(ctl, dmListDevices, "", 0)
	if err != nil {
		return nil, err
	}
	rest, err := b.data()
	if err != nil {
		return nil, err
	}
	// struct dm_name_list: dev, next (from this one), name.
	const nameAt = 12
	var names []string
	for len(rest) > nameAt && binary.NativeEndian.Uint64(rest) != 0 {
		next := int(binary.NativeEndian.Uint32(rest[8:]))
		names = append(names, unix.ByteSliceToString(rest[nameAt:]))
		if next == 0 {
			break
		}
		if next > len(rest) {
			return nil, unix.EIO
		}
		rest = rest[next:]
	}
	return names, nil
}

// dmGrowing makes a request whose answer is as long as it is.
func dmGrowing(ctl int, command uintptr, name string, flags uint32) (dmRequest, error) {
	for size := dmFirstBuffer; ; size *= 4 {
		b, err := newDMRequest(name, "", flags, size)
		if err != nil {
			return nil, err
		}
		if err := b.call(ctl, command); err != nil {
			return nil, err
		}
		if b.flags()&dmFlagBufferFull == 0 {
			return b, nil
		}
		if size > dmMaxBuffer {
			return nil, unix.ENOBUFS
		}
	}
}
