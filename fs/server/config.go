package server

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/fs/fusefs"
	"plyfs/fs/mountopt"
	"plyfs/fs/union"
	"plyfs/internal/exit"
)

// environment is what the mapping of options depends on beside the options.
type environment struct {
	// root is effective user id 0, in whatever user namespace.
	root bool
	// userAllowOther says that /etc/fuse.conf lets plain users use allow_other.
	userAllowOther bool
	// selinux says that the kernel takes the context options.
	selinux bool
	// aufsWhiteouts is fuse-overlayfs's environment variable FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT.
	aufsWhiteouts bool
}

// unionOptions is what o says about the union, without the layers.
func unionOptions(o mountopt.Options, env environment) union.Options {
	u := union.Options{
		ReadOnly:         o.ReadOnly,
		UIDMap:           idRanges(o.UIDMap),
		GIDMap:           idRanges(o.GIDMap),
		SquashUID:        o.SquashToUID,
		SquashGID:        o.SquashToGID,
		Whiteout:         whiteoutForm(o.Whiteout, env),
		XattrPermissions: union.XattrPermissions(o.XattrPermissions),
		RedirectDir:      RedirectDir(o.RedirectDir),
		NoMetacopy:       o.Metacopy == mountopt.Off,
		NoIndex:          o.HardlinkIndex == mountopt.Off,
		NoACL:            o.NoACL,
		NoXattrs:         o.NoXattrs,
		StaticNlink:      o.StaticNlink,
		UserXattr:        o.UserXattr,
		Volatile:         o.Volatile,
		NoFsync:          !o.Fsync.Enabled(true),
		Live:             o.Timeout != nil,
		MaxOpenFiles:     o.MaxOpenFiles,
		Quota:            union.Quota{Bytes: o.QuotaBytes, Inodes: o.QuotaInodes},
	}
	if o.SquashToRoot {
		// cf. fuse-overlayfs main.c find_mapping: the two others go first.
		if u.SquashUID == nil {
			u.SquashUID = new(uint32)
		}
		if u.SquashGID == nil {
			u.SquashGID = new(uint32)
		}
	}
	return u
}

func idRanges(in []mountopt.IDRange) []union.IDRange {
	var out []union.IDRange
	for _, r := range in {
		out = append(out, union.IDRange(r))
	}
	return out
}

func whiteoutForm(w mountopt.Whiteout, env environment) union.WhiteoutForm {
	switch {
	case w == mountopt.WhiteoutKernel:
		return union.WhiteoutKernel
	case w == mountopt.WhiteoutAUFS || env.aufsWhiteouts:
		return union.WhiteoutAUFS
	}
	return union.WhiteoutAuto
}

// RedirectDir maps off to follow, which the kernel does too in its default configuration (cf. overlayfs params.c
// ovl_parse_param, Kconfig OVERLAY_FS_REDIRECT_ALWAYS_FOLLOW): what was renamed with redirect_dir=on stays whole.
func RedirectDir(r mountopt.RedirectDir) union.RedirectDir {
	switch r {
	case mountopt.RedirectFollow, mountopt.RedirectOff:
		return union.RedirectFollow
	case mountopt.RedirectNoFollow:
		return union.RedirectOff
	}
	return union.RedirectOn
}

// readOnly says whether the mount is; without an upper layer it always is.
func readOnly(o mountopt.Options) bool { return o.ReadOnly || o.UpperDir == "" }

// hasQuota says whether what is written is bounded.
func hasQuota(o mountopt.Options) bool { return o.QuotaBytes > 0 || o.QuotaInodes > 0 }

// serveConfig is what o says about how the union is served.
func serveConfig(o mountopt.Options) fusefs.Config {
	c := fusefs.Config{
		Timeout:  fusefs.Unlimited,
		ReadOnly: readOnly(o),
		NoXattrs: o.NoXattrs,
		Debug:    o.Debug,
	}
	if o.Timeout != nil {
		c.Timeout = *o.Timeout
	}
	switch {
	case o.Data == mountopt.DataNoOpen, hasQuota(o) && !readOnly(o):
		// In passthrough the kernel writes without asking, past any quota.
		c.Data = fusefs.DataNoOpen
	case o.Data == mountopt.DataPassthrough:
		c.Data = fusefs.DataPassthrough
	}
	if o.Transport == mountopt.TransportGoFUSE {
		c.Transport = fusefs.TransportGoFUSE
	}
	return c
}

// mountConfig is what r says about the mount itself. Permissions are always checked by the kernel, which caches what it
// is told: without default_permissions cached paths would be open to everybody.
func mountConfig(r request, env environment) (fusefs.MountConfig, error) {
	o := r.opts
	c := fusefs.MountConfig{
		Target:             r.target,
		FSName:             r.subtype,
		Subtype:            r.subtype,
		Flags:              mountFlags(o, env),
		AllowOther:         env.root || o.AllowOther,
		DefaultPermissions: true,
		MaxRead:            o.MaxRead,
	}
	if r.source != "" && r.subtype != NameFuseOverlayfs {
		c.FSName = r.source
	}
	if o.FSName != "" {
		c.FSName = o.FSName
	}
	if o.Subtype != "" {
		c.Subtype = o.Subtype
	}
	if o.AllowOther && !env.root && !env.userAllowOther {
		return c, exit.Faultf(exit.Usage, "option allow_other: only root may give it; "+
			"add a line user_allow_other to /etc/fuse.conf, or leave the option out")
	}
	if o.Symfollow == mountopt.Off && !env.root {
		return c, exit.Faultf(exit.Usage, "option nosymfollow: fusermount3, through which plain users mount, does not know it; "+
			"leave it out, or mount in a user namespace (unshare -Urm)")
	}
	labels, err := labelOptions(o)
	if err != nil {
		return c, err
	}
	if env.selinux {
		c.Options = labels
	}
	return c, nil
}

// labelOptions are the SELinux labels as the kernel's option parser reads them: it takes the quotes away, and commas
// inside them as they are (cf. security/selinux/hooks.c opt_len).
func labelOptions(o mountopt.Options) ([]string, error) {
	var out []string
	for _, l := range []struct{ key, value string }{
		{"context", o.Context}, {"fscontext", o.FSContext}, {"defcontext", o.DefContext}, {"rootcontext", o.RootContext},
	} {
		if l.value == "" {
			continue
		}
		if strings.ContainsAny(l.value, "\"\x00\n") {
			return nil, exit.Faultf(exit.Usage, "option %s=%q: is no SELinux label", l.key, l.value)
		}
		out = append(out, fmt.Sprintf(`%s="%s"`, l.key, l.value))
	}
	return out, nil
}

// mountFlags are the MS_ flags. A plain user's mount never has set-id programs and devices: fusermount3 sees to it too.
// Access times are kept by the layers' file systems; the mount has noatime, as fuse-overlayfs's.
func mountFlags(o mountopt.Options, env environment) uintptr {
	flags := switchedFlags(o, 0)
	if readOnly(o) {
		flags |= unix.MS_RDONLY
	}
	if !env.root {
		flags |= unix.MS_NOSUID | unix.MS_NODEV
	}
	if o.Atime == mountopt.AtimeDefault {
		flags |= unix.MS_NOATIME
	}
	return flags
}

// changedFlags are those of a mount whose options are shown, but for what o says about them.
func changedFlags(shown []string, o mountopt.Options) uintptr {
	var now uintptr
	for word, flag := range map[string]uintptr{
		"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "nodiratime": unix.MS_NODIRATIME,
		"nosymfollow": unix.MS_NOSYMFOLLOW, "lazytime": unix.MS_LAZYTIME, "sync": unix.MS_SYNCHRONOUS, "dirsync": unix.MS_DIRSYNC,
		"noatime": unix.MS_NOATIME, "relatime": unix.MS_RELATIME,
	} {
		if slices.Contains(shown, word) {
			now |= flag
		}
	}
	if now&(unix.MS_NOATIME|unix.MS_RELATIME) == 0 {
		now |= unix.MS_STRICTATIME // without a word
	}
	flags := switchedFlags(o, now)
	switch {
	case o.ReadOnly:
		flags |= unix.MS_RDONLY
	case o.Writable:
		flags &^= unix.MS_RDONLY
	}
	return flags
}

// switchedFlags are the MS_ flags, of which o decides those that it names.
func switchedFlags(o mountopt.Options, flags uintptr) uintptr {
	set := func(flag uintptr, on bool) {
		if flags &^= flag; on {
			flags |= flag
		}
	}
	for _, f := range []struct {
		given mountopt.Switch
		flag  uintptr
		off   bool // the flag takes away what the option gives
	}{
		{o.Suid, unix.MS_NOSUID, true},
		{o.Dev, unix.MS_NODEV, true},
		{o.Exec, unix.MS_NOEXEC, true},
		{o.DirAtime, unix.MS_NODIRATIME, true},
		{o.Symfollow, unix.MS_NOSYMFOLLOW, true},
		{o.LazyTime, unix.MS_LAZYTIME, false},
		{o.Sync, unix.MS_SYNCHRONOUS, false},
	} {
		if f.given != mountopt.Default {
			set(f.flag, (f.given == mountopt.On) != f.off)
		}
	}
	if o.DirSync {
		set(unix.MS_DIRSYNC, true)
	}
	if o.Atime != mountopt.AtimeDefault {
		set(unix.MS_NOATIME, o.Atime == mountopt.AtimeOff)
		set(unix.MS_RELATIME, o.Atime == mountopt.AtimeRelative)
		set(unix.MS_STRICTATIME, o.Atime == mountopt.AtimeStrict)
	}
	return flags
}

// logLevel is loglevel as slog counts.
func logLevel(o mountopt.Options) slog.Level {
	switch {
	case o.Debug || o.LogLevel == mountopt.LogDebug:
		return slog.LevelDebug
	case o.LogLevel == mountopt.LogWarn:
		return slog.LevelWarn
	case o.LogLevel == mountopt.LogError:
		return slog.LevelError
	}
	return slog.LevelInfo
}
