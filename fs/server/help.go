package server

import (
	"fmt"
	"io"

	"plyfs/internal/version"
)

// compatVersion is the fuse-overlayfs whose command line and behaviour the personality of that name has.
const compatVersion = "1.17"

// PrintVersion answers --version. Callers of fuse-overlayfs show, and some read, the first line.
func PrintVersion(w io.Writer, p Personality) error {
	if p.name == NameFuseOverlayfs {
		if _, err := fmt.Fprintf(w, "fuse-overlayfs: version %s\n", compatVersion); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(w, version.Read())
	return err
}

// printHelp answers --help of everything that mounts.
func printHelp(w io.Writer, p Personality) error {
	_, err := fmt.Fprintf(w, "usage: %s\n%s", p.usage, mountHelp)
	return err
}

const mountHelp = `
Mounts a union of directories. Returns when the mount serves, or with an exit
code of mount(8) and one line on stderr.

    -o OPTION[,OPTION]...  options, see below; may be repeated
    -f                     stay in the foreground (mount helpers: don't mount, only check)
    -d, --debug            log every request to stderr, in the foreground
    -h, --help             print this
    -V, --version          print the version

Layers
    lowerdir=DIR[:DIR]...  read-only layers, topmost first; \: is a colon, \, a comma
    lowerdir+=DIR          one more layer below the others
    upperdir=DIR           the writable layer; without it the mount is read-only
    workdir=DIR            scratch space on upperdir's file system
    ro                     never change the upper layer

Owners
    uidmapping=MAP         disk:mount:length triples joined by colons;
    gidmapping=MAP         identifiers outside of them show as nobody's
    squash_to_root, squash_to_uid=ID, squash_to_gid=ID
                           show all objects as owned by one user or group
    xattr_permissions=1|2  keep owner and mode in an attribute (1 security., 2 user.)

Format of the upper layer
    redirect_dir=on|follow|off|nofollow   rename directories of lower layers (on)
    metacopy=on|off        copy only metadata on chmod, chown, ... (on)
    hardlink_index=on|off  keep hard links together when they are copied up (on)
    whiteout=auto|kernel|aufs             the form of deletions (auto)
    userxattr              write user.overlay.* attributes, not trusted.overlay.*

Behaviour
    data=auto|passthrough|noopen          who reads and writes file contents (auto)
    index=on|off|verify|DIR               answer for the lower layers from an index (on)
    timeout=SECONDS        how long the kernel may trust what it knows; 0 for layers
                           that are changed from outside (unlimited)
    volatile               never sync: fast, and lost after a crash
    fsync=0|1              0 ignores fsync of applications (1)
    noacl, noxattrs=1      no POSIX ACLs, no extended attributes at all
    static_nlink           link counts of directories are always 1
    quota_bytes=N, quota_inodes=N         bounds of the upper layer: N, Nk, Nm, Ng, Nt (none)
    max_open_files=N       descriptors to keep open (a share of the limit)
    transport=auto|fast|gofuse            what reads requests (auto)
    log=FILE, loglevel=debug|info|warn|error
                           where to log, and how much (info); SIGUSR1 logs counters

Mount
    allow_other            let other users in (implied for root)
    context="LABEL"        SELinux label; also fscontext, defcontext, rootcontext
    fsname=NAME, subtype=NAME             what mountinfo shows
    nosuid, nodev, noexec, noatime, relatime, strictatime, nodiratime, lazytime,
    nosymfollow, sync, dirsync, remount, max_read=BYTES

All other options of fuse-overlayfs, and the words of fstab(5), are accepted and
change nothing.
`
