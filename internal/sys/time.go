package sys

import "golang.org/x/sys/unix"

// Time is a timestamp of an inode. The zero value is the epoch; file systems without a birth time report it as zero.
type Time struct {
	Sec  int64
	Nsec uint32
}

// TimeOf converts a statx timestamp.
func TimeOf(t unix.StatxTimestamp) Time { return Time{Sec: t.Sec, Nsec: t.Nsec} }

// Timespec converts to the form that utimensat(2) takes.
func (t Time) Timespec() unix.Timespec { return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)} }

// OmitTime is the utimensat(2) value that leaves a timestamp alone.
func OmitTime() unix.Timespec { return unix.Timespec{Nsec: unix.UTIME_OMIT} }

// NowTime is the utimensat(2) value that sets a timestamp to the current time.
func NowTime() unix.Timespec { return unix.Timespec{Nsec: unix.UTIME_NOW} }
