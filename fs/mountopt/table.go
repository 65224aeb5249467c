package mountopt

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// spec is one option: the keys that set it and how it is written again.
type spec struct {
	keys []string
	set  func(o *Options, t token) error
	// words are the words that set the option to its value in o, none for its default.
	words func(o *Options) []Word
}

// table is the whole grammar, in the order in which String writes it.
func table() []spec {
	return slices.Concat(layerSpecs(), ownerSpecs(), overlaySpecs(), plyfsSpecs(), mountSpecs(), fuseSpecs(), ignoredSpecs())
}

// lookup is table by key.
func lookup() map[string]spec {
	m := make(map[string]spec, 160)
	for _, s := range table() {
		for _, k := range s.keys {
			m[k] = s
		}
	}
	return m
}

func layerSpecs() []spec {
	return []spec{
		{
			keys: []string{"lowerdir"},
			set: func(o *Options, t token) (err error) {
				o.LowerDirs, err = lowerDirs(t)
				return err
			},
			words: nil, // String writes the value itself: a Word would escape the colons between the paths
		},
		{
			// cf. overlayfs params.c ovl_parse_layer: the value is one path, colons are part of it.
			keys: []string{"lowerdir+"},
			set: func(o *Options, t token) error {
				p, err := path(t)
				if err == nil {
					o.LowerDirs = append(o.LowerDirs, p)
				}
				return err
			},
		},
		refused("datadir+", "data-only layers are not supported", "use lowerdir"),
		pathSpec("upperdir", func(o *Options) *string { return &o.UpperDir }),
		pathSpec("workdir", func(o *Options) *string { return &o.WorkDir }),
	}
}

func ownerSpecs() []spec {
	return []spec{
		idMapSpec("uidmapping", func(o *Options) *[]IDRange { return &o.UIDMap }),
		idMapSpec("gidmapping", func(o *Options) *[]IDRange { return &o.GIDMap }),
		flag("squash_to_root", func(o *Options) *bool { return &o.SquashToRoot }),
		idSpec("squash_to_uid", func(o *Options) **uint32 { return &o.SquashToUID }),
		idSpec("squash_to_gid", func(o *Options) **uint32 { return &o.SquashToGID }),
	}
}

func overlaySpecs() []spec {
	return []spec{
		enum("redirect_dir", func(o *Options) *RedirectDir { return &o.RedirectDir },
			"", "on", "follow", "off", "nofollow"),
		onOff("metacopy", func(o *Options) *Switch { return &o.Metacopy }),
		onOff("hardlink_index", func(o *Options) *Switch { return &o.HardlinkIndex }),
		indexSpec(),
		enum("xino", func(o *Options) *Xino { return &o.Xino }, "", "off", "auto", "on"),
		flag("userxattr", func(o *Options) *bool { return &o.UserXattr }),
		flag("volatile", func(o *Options) *bool { return &o.Volatile }),
		fsyncSpec(),
		{
			keys: []string{"sync", "async"},
			set:  setSync,
			words: func(o *Options) []Word {
				return append(wordIf(o.Sync == On, "sync"), wordIf(o.Sync == Off, "async")...)
			},
		},
		numberSwitch("writeback", func(o *Options) *Switch { return &o.Writeback }),
		numberFlag("noxattrs", func(o *Options) *bool { return &o.NoXattrs }),
		flag("noacl", func(o *Options) *bool { return &o.NoACL }),
		flag("static_nlink", func(o *Options) *bool { return &o.StaticNlink }),
		flag("ino32_t", func(o *Options) *bool { return &o.Ino32 }),
		{
			keys: []string{"xattr_permissions"},
			set: func(o *Options, t token) error {
				n, err := number(t, 0, 2, "give 1 (security.*, needs privilege), 2 (user.*) or 0 for none")
				if err == nil {
					o.XattrPermissions = int(n)
				}
				return err
			},
			words: func(o *Options) []Word {
				return valueIf(o.XattrPermissions != 0, "xattr_permissions", strconv.Itoa(o.XattrPermissions))
			},
		},
		{
			keys: []string{"timeout"},
			set: func(o *Options, t token) (err error) {
				o.Timeout, err = timeout(t)
				return err
			},
			words: func(o *Options) []Word {
				if o.Timeout == nil {
					return nil
				}
				return valueIf(true, "timeout", formatSeconds(*o.Timeout))
			},
		},
		refused("nfs_export", "plyfs can't be exported by file handle", "leave it out", "off"),
		refused("verity", "fs-verity digests are not checked", "leave it out", "off"),
		refused("uuid", "plyfs keeps no identifier in the upper layer", "leave it out", "auto", "null", "off"),
		refused("plugins", "plugins for lower layers are not supported", "give directories in lowerdir", ""),
	}
}

func plyfsSpecs() []spec {
	return []spec{
		enum("data", func(o *Options) *Data { return &o.Data }, "auto", "passthrough", "noopen"),
		enum("transport", func(o *Options) *Transport { return &o.Transport }, "auto", "fast", "gofuse"),
		enum("whiteout", func(o *Options) *Whiteout { return &o.Whiteout }, "auto", "kernel", "aufs"),
		pathSpec("log", func(o *Options) *string { return &o.Log }),
		enum("loglevel", func(o *Options) *LogLevel { return &o.LogLevel }, "info", "debug", "warn", "error"),
		{
			keys: []string{"max_open_files"},
			set: func(o *Options, t token) error {
				n, err := number(t, 0, math.MaxInt32, "give how many descriptors to keep open, 0 for a share of the limit")
				if err == nil {
					o.MaxOpenFiles = int(n)
				}
				return err
			},
			words: func(o *Options) []Word {
				return valueIf(o.MaxOpenFiles != 0, "max_open_files", strconv.Itoa(o.MaxOpenFiles))
			},
		},
		sizeSpec("quota_bytes", func(o *Options) *int64 { return &o.QuotaBytes }),
		sizeSpec("quota_inodes", func(o *Options) *int64 { return &o.QuotaInodes }),
	}
}

func mountSpecs() []spec {
	return []spec{
		{
			keys: []string{"ro", "rw"},
			set: func(o *Options, t token) error {
				if t.hasValue {
					return errUnknown
				}
				o.ReadOnly, o.Writable = t.key == "ro", t.key == "rw"
				return nil
			},
			words: func(o *Options) []Word { return append(wordIf(o.ReadOnly, "ro"), wordIf(o.Writable, "rw")...) },
		},
		flag("remount", func(o *Options) *bool { return &o.Remount }),
		pair("suid", "nosuid", func(o *Options) *Switch { return &o.Suid }),
		pair("dev", "nodev", func(o *Options) *Switch { return &o.Dev }),
		pair("exec", "noexec", func(o *Options) *Switch { return &o.Exec }),
		{
			keys: []string{"noatime", "atime", "relatime", "strictatime"},
			set: func(o *Options, t token) error {
				if t.hasValue {
					return errUnknown
				}
				o.Atime = AtimeOff + Atime(slices.Index(atimeWords(), t.key))
				return nil
			},
			words: func(o *Options) []Word {
				if o.Atime == AtimeDefault {
					return nil
				}
				return wordIf(true, atimeWords()[o.Atime-AtimeOff])
			},
		},
		pair("diratime", "nodiratime", func(o *Options) *Switch { return &o.DirAtime }),
		pair("lazytime", "nolazytime", func(o *Options) *Switch { return &o.LazyTime }),
		pair("symfollow", "nosymfollow", func(o *Options) *Switch { return &o.Symfollow }),
		flag("dirsync", func(o *Options) *bool { return &o.DirSync }),
		stringSpec("context", func(o *Options) *string { return &o.Context }),
		stringSpec("fscontext", func(o *Options) *string { return &o.FSContext }),
		stringSpec("defcontext", func(o *Options) *string { return &o.DefContext }),
		stringSpec("rootcontext", func(o *Options) *string { return &o.RootContext }),
	}
}

func fuseSpecs() []spec {
	return []spec{
		flag("allow_other", func(o *Options) *bool { return &o.AllowOther }),
		flag("allow_root", func(o *Options) *bool { return &o.AllowRoot }),
		flag("default_permissions", func(o *Options) *bool { return &o.DefaultPermissions }),
		flag("debug", func(o *Options) *bool { return &o.Debug }),
		stringSpec("fsname", func(o *Options) *string { return &o.FSName }),
		stringSpec("subtype", func(o *Options) *string { return &o.Subtype }),
		{
			keys: []string{"max_read"},
			set: func(o *Options, t token) error {
				n, err := number(t, 0, math.MaxInt32, "give a number of bytes")
				if err == nil {
					o.MaxRead = int(n)
				}
				return err
			},
			words: func(o *Options) []Word {
				return valueIf(o.MaxRead != 0, "max_read", strconv.Itoa(o.MaxRead))
			},
		},
	}
}

// ignoredSpecs are words that are accepted because others pass them, and change nothing here. fd, rootmode, user_id and
// group_id of mount(2) are not among them: they would contradict what the mount itself passes. See ofMount.
func ignoredSpecs() []spec {
	keys := strings.Fields(`
		defaults user nouser users auto noauto _netdev nofail owner group comment helper uhelper
		silent loud mand nomand iversion noiversion norelatime nostrictatime
		threaded fast_ino fast_ino_check private
		max_write max_readahead max_background congestion_threshold
		async_read sync_read async_dio no_async_dio writeback_cache no_writeback_cache
		splice_read splice_write splice_move no_splice_read no_splice_write no_splice_move
		kernel_cache auto_cache no_auto_cache atomic_o_trunc big_writes large_read nonempty
		clone_fd max_idle_threads max_threads auto_unmount blksize
		entry_timeout attr_timeout negative_timeout ac_attr_timeout use_ino readdir_ino hard_remove intr noforget`)
	return []spec{{keys: keys, set: func(*Options, token) error { return nil }}}
}

// atimeWords are the words of the Atime values behind AtimeDefault.
func atimeWords() []string { return []string{"noatime", "atime", "relatime", "strictatime"} }

// setSync tells apart mount(8)'s sync, which has no value, and fuse-overlayfs's other name for fsync, which has one.
func setSync(o *Options, t token) error {
	if t.hasValue && t.key == "sync" {
		return setNumberSwitch(&o.Fsync, t)
	}
	if t.hasValue {
		return errUnknown
	}
	o.Sync = Off
	if t.key == "sync" {
		o.Sync = On
	}
	return nil
}

// fsyncSpec takes fuse-overlayfs's numbers and the kernel's words (cf. overlayfs params.c ovl_parameter_fsync).
func fsyncSpec() spec {
	s := numberSwitch("fsync", func(o *Options) *Switch { return &o.Fsync })
	numbers := s.set
	s.set = func(o *Options, t token) error {
		switch t.value {
		case "volatile":
			o.Volatile = true
			return nil
		case "auto", "strict":
			o.Fsync, o.Volatile = On, false // as in the kernel, volatile is one of its values and the last one counts
			return nil
		}
		return numbers(o, t)
	}
	return s
}

// formatSeconds writes a duration as timeout reads it.
func formatSeconds(d time.Duration) string {
	whole := strconv.FormatInt(int64(d/time.Second), 10)
	micro := int64(d % time.Second / time.Microsecond)
	if micro == 0 {
		return whole
	}
	return whole + "." + strings.TrimRight(strconv.FormatInt(1_000_000+micro, 10)[1:], "0")
}
