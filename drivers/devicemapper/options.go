package devicemapper

import (
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"plyfs/drivers"
)

// The driver's options.
const (
	optPool     = "dm.thinpooldev"
	optData     = "dm.datadev"
	optMetadata = "dm.metadatadev"
	optLoopData = "dm.loopdatasize"
	optLoopMeta = "dm.loopmetadatasize"
	optFS       = "dm.fs"
	optMkfs     = "dm.mkfsarg"
	optMount    = "dm.mountopt"
	optBaseSize = "dm.basesize"
	optBlock    = "dm.blocksize"
	optMinFree  = "dm.min_free_space"
	optLater    = "dm.use_deferred_removal"
	optDiscard  = "dm.blkdiscard"
)

const (
	fsXFS  = "xfs"
	fsExt4 = "ext4"
)

// options are the driver's, parsed.
type options struct {
	pool               string // name in the device mapper
	data, metadata     string // paths of block devices
	loopData, loopMeta uint64 // bytes, 0 if not given
	fs                 string // "" for what the machine has
	mkfsArgs           []string
	mountOptions       string
	baseSize           uint64 // bytes
	blockSize          uint64 // bytes
	minFree            uint64 // percent
	deferred           bool
	discard            string // "true", "false", or "" for what suits the pool
}

func defaultOptions() options {
	return options{
		baseSize: 10 << 30, blockSize: blockStep, minFree: 10, deferred: true, mountOptions: "discard",
	}
}

// The sizes of the sparse files of a new store for which none are given.
const (
	defaultLoopData = 100 << 30
	defaultLoopMeta = 2 << 30
)

// Limits of dm-thin: blocks are from 64 KiB to 1 GiB, in steps of 64 KiB; metadata of more than 16 GiB is not used.
const (
	blockStep   = 64 << 10
	maxBlock    = 1 << 30
	minMetadata = 2 << 20
	maxMetadata = 16 << 30
	minBase     = 16 << 20
)

func parseOptions(given map[string]string) (o options, err error) {
	o = defaultOptions()
	setters := o.setters()
	for key, value := range given {
		set, ok := setters[key]
		if !ok {
			names := make([]string, 0, len(setters))
			for name := range setters {
				names = append(names, name)
			}
			slices.Sort(names)
			return o, fmt.Errorf("option %s: the driver devicemapper has only %s: %w", key, strings.Join(names, ", "),
				drivers.ErrInvalid)
		}
		if err := set(value); err != nil {
			return o, fmt.Errorf("option %s=%s: %w: %w", key, value, err, drivers.ErrInvalid)
		}
	}
	switch {
	case (o.data == "") != (o.metadata == ""):
		err = fmt.Errorf("options %s and %s go together", optData, optMetadata)
	case o.pool != "" && o.data != "":
		err = fmt.Errorf("options %s and %s exclude each other", optPool, optData)
	case o.data != "" && o.data == o.metadata:
		err = fmt.Errorf("options %s and %s name the same device", optData, optMetadata)
	}
	if err != nil {
		return o, fmt.Errorf("%w: %w", err, drivers.ErrInvalid)
	}
	return o, nil
}

func (o *options) setters() map[string]func(string) error {
	return map[string]func(string) error{
		optPool:     o.setPool,
		optData:     func(v string) error { return setPath(&o.data, v) },
		optMetadata: func(v string) error { return setPath(&o.metadata, v) },
		optLoopData: func(v string) error { return setSize(&o.loopData, v, blockStep, 1<<50) },
		optLoopMeta: func(v string) error { return setSize(&o.loopMeta, v, minMetadata, maxMetadata) },
		optBaseSize: func(v string) error { return setSize(&o.baseSize, v, minBase, 1<<50) },
		optBlock: func(v string) error {
			err := setSize(&o.blockSize, v, blockStep, maxBlock)
			if err == nil && o.blockSize%blockStep != 0 {
				err = fmt.Errorf("not a multiple of %d bytes", blockStep)
			}
			return err
		},
		optFS: func(v string) error {
			if v != fsXFS && v != fsExt4 {
				return fmt.Errorf("neither %s nor %s", fsXFS, fsExt4)
			}
			o.fs = v
			return nil
		},
		optMkfs: func(v string) error {
			o.mkfsArgs = append(o.mkfsArgs, strings.Fields(v)...)
			return nil
		},
		optMount: func(v string) error {
			o.mountOptions = v
			return checkMountOptions(v)
		},
		optMinFree: func(v string) (err error) {
			o.minFree, err = strconv.ParseUint(strings.TrimSuffix(v, "%"), 10, 8)
			if err == nil && o.minFree > 99 {
				err = fmt.Errorf("not from 0%% to 99%%")
			}
			return err
		},
		optLater: func(v string) (err error) {
			o.deferred, err = strconv.ParseBool(v)
			return err
		},
		optDiscard: func(v string) error {
			b, err := strconv.ParseBool(v)
			o.discard = strconv.FormatBool(b)
			return err
		},
	}
}

// setPool takes the name of a pool, or its path in /dev/mapper.
func (o *options) setPool(v string) error {
	o.pool = strings.TrimPrefix(v, mapperDir+"/")
	if o.pool == "" || strings.Contains(o.pool, "/") {
		return fmt.Errorf("not the name of a thin pool, as dmsetup ls has it, nor %s/NAME", mapperDir)
	}
	return nil
}

func setPath(to *string, v string) error {
	*to = v
	if !strings.HasPrefix(v, "/") {
		return fmt.Errorf("not an absolute path")
	}
	return nil
}

// setSize reads a number of bytes, with K, M, G or T of 1024 to the powers of 1 to 4.
func setSize(to *uint64, v string, smallest, largest uint64) error {
	number, shift := strings.TrimSuffix(strings.ToUpper(v), "B"), 0
	for i, unit := range []string{"K", "M", "G", "T"} {
		if n, ok := strings.CutSuffix(number, unit); ok {
			number, shift = n, 10*(i+1)
		}
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return fmt.Errorf("not a size, as 10G or 512M")
	}
	if n != 0 && bits.Len64(n)+shift > 64 || n<<shift < smallest || n<<shift > largest {
		return fmt.Errorf("not from %d to %d bytes", smallest, largest)
	}
	*to = n << shift
	return nil
}

// checkMountOptions refuses what the driver says itself at each mount.
func checkMountOptions(v string) error {
	for o := range strings.SplitSeq(v, ",") {
		name, _, _ := strings.Cut(o, "=")
		if slices.Contains([]string{
			"ro", "rw", "nouuid", "context", "remount", "bind", "loop", "norecovery",
			"noload",
		}, name) {
			return fmt.Errorf("%s is not for all layers to have", name)
		}
	}
	return nil
}
