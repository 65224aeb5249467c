package devicemapper

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

// sector is the unit of the device mapper, in bytes.
const sector = 512

// deviceID is the number of a thin device in its pool.
type deviceID uint32

// maxDeviceID is the largest number: dm-thin has 24 bits for them.
const maxDeviceID deviceID = 1<<24 - 1

// ErrPoolFull says that the pool has no space left, or less than is to be kept free.
var ErrPoolFull = errors.New("thin pool is full")

// poolTable returns the parameters of a thin-pool target. Devices are named by number: they may have no nodes. A full
// pool fails writes instead of holding them back.
func poolTable(metadata, data uint64, blockSectors uint64) string {
	const (
		lowWater = 0 // nobody listens for the event
		features = "2 skip_block_zeroing error_if_no_space"
	)
	return fmt.Sprintf("%s %s %d %d %s", devNumber(metadata), devNumber(data), blockSectors, lowWater, features)
}

// thinTable returns the parameters of a thin target.
func thinTable(pool uint64, id deviceID) string { return fmt.Sprintf("%s %d", devNumber(pool), id) }

func devNumber(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }

// Messages to a pool.
func msgCreateThin(id deviceID) string { return fmt.Sprintf("create_thin %d", id) }

func msgCreateSnap(id, origin deviceID) string { return fmt.Sprintf("create_snap %d %d", id, origin) }
func msgDelete(id deviceID) string             { return fmt.Sprintf("delete %d", id) }
func msgSetTransaction(from, to uint64) string {
	return fmt.Sprintf("set_transaction_id %d %d", from, to)
}

// msgCancelRemove tells a device that its removal with its last user is off.
const msgCancelRemove = "@cancel_deferred_remove"

// modeFull is the mode of a pool that has no more data blocks.
const modeFull = "out_of_data_space"

// poolStatus is what a thin-pool target says of itself.
type poolStatus struct {
	transaction             uint64
	usedMeta, totalMeta     uint64 // blocks of 4 KiB
	usedData, totalData     uint64 // blocks of the pool's size
	mode                    string // rw, ro or modeFull
	discardPassdown         bool
	queueIfFull, needsCheck bool
	failed                  bool
}

// parsePoolStatus reads the status line of a thin-pool target; cf. the kernel's thin-provisioning.rst.
func parsePoolStatus(line string) (s poolStatus, err error) {
	f := strings.Fields(line)
	if len(f) == 1 && f[0] == "Fail" {
		return poolStatus{failed: true, mode: "Fail"}, nil
	}
	if len(f) < 5 {
		return s, fmt.Errorf("status of a thin pool %q: fields are missing: %w", line, drivers.ErrDamaged)
	}
	var errs [3]error
	s.transaction, errs[0] = strconv.ParseUint(f[0], 10, 64)
	s.usedMeta, s.totalMeta, errs[1] = parsePart(f[1])
	s.usedData, s.totalData, errs[2] = parsePart(f[2])
	if err := errors.Join(errs[:]...); err != nil {
		return s, fmt.Errorf("status of a thin pool %q: %w: %w", line, err, drivers.ErrDamaged)
	}
	// f[3] is the held root of the metadata.
	s.mode = f[4]
	for _, word := range f[5:] {
		switch word {
		case "discard_passdown":
			s.discardPassdown = true
		case "queue_if_no_space":
			s.queueIfFull = true
		case "needs_check":
			s.needsCheck = true
		}
	}
	return s, nil
}

// parsePart reads "used/total".
func parsePart(s string) (used, total uint64, err error) {
	a, b, ok := strings.Cut(s, "/")
	if !ok {
		return 0, 0, fmt.Errorf("%q is no used/total", s)
	}
	used, err = strconv.ParseUint(a, 10, 64)
	if err == nil {
		total, err = strconv.ParseUint(b, 10, 64)
	}
	return used, total, err
}

// check returns an error that wraps ErrDamaged if the pool can't be written to for another reason than being full.
func (s poolStatus) check(name string) error {
	const way = "deactivate it, run thin_check and thin_repair on its metadata device"
	switch {
	case s.failed:
		return fmt.Errorf("thin pool %s has failed; %s: %w", name, way, drivers.ErrDamaged)
	case s.needsCheck:
		return fmt.Errorf("the metadata of thin pool %s must be checked; %s: %w", name, way, drivers.ErrDamaged)
	case s.mode == "ro":
		return fmt.Errorf("thin pool %s is read-only; if its metadata are full, make that device larger, else %s: %w",
			name, way,
			drivers.ErrDamaged)
	}
	return nil
}

// checkFree returns an error that wraps ErrPoolFull if less than percent of the data or metadata are free.
func (s poolStatus) checkFree(name string, percent uint64) error {
	for _, part := range []struct {
		what        string
		used, total uint64
	}{{"data", s.usedData, s.totalData}, {"metadata", s.usedMeta, s.totalMeta}} {
		free := part.total - min(part.used, part.total)
		if free == 0 || free*100 < part.total*percent {
			return fmt.Errorf("%s of thin pool %s: %d of %d blocks are free, less than %d%% (%s); remove layers, "+
				"or make the device larger: %w: %w",
				part.what, name, free, part.total, percent, optMinFree, ErrPoolFull, unix.ENOSPC)
		}
	}
	return nil
}

// parseMapped reads the status line of a thin target: how many sectors of it are mapped, those that it shares included.
func parseMapped(line string) (uint64, error) {
	f := strings.Fields(line)
	if len(f) == 0 || f[0] == "Fail" || f[0] == "Error" {
		return 0, fmt.Errorf("status of a thin device %q: %w", line, drivers.ErrDamaged)
	}
	n, err := strconv.ParseUint(f[0], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("status of a thin device %q: %w: %w", line, err, drivers.ErrDamaged)
	}
	return n, nil
}
