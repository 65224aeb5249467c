package plyfs

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"plyfs/drivers"
	"plyfs/drivers/internal/overlaystore"
	"plyfs/fs/mountopt"
)

// options are the driver's.
type options struct {
	// program is the mount program, "" for plyfs itself.
	program string
	// mount are the options of each mount but the layers.
	mount             mountopt.Options
	ignoreChownErrors bool
}

func parseOptions(in map[string]string) (o options, err error) {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(in)) {
		value := in[name]
		switch name {
		case "mount_program":
			if !filepath.IsAbs(value) {
				err = fmt.Errorf("option mount_program=%s: give an absolute path: %w", value, drivers.ErrInvalid)
			}
			o.program = value
		case "mountopt":
			words = append(words, value)
		case "index":
			words = append(words, "index="+value)
		case "ignore_chown_errors":
			o.ignoreChownErrors, err = overlaystore.Bool(name, value)
		default:
			const known = "mount_program, mountopt, index and ignore_chown_errors"
			err = fmt.Errorf("unknown option %s of driver %s; there are %s: %w", name, Name, known, drivers.ErrInvalid)
		}
		if err != nil {
			return options{}, err
		}
	}
	if o.mount, err = mountopt.Parse(words...); err != nil {
		return options{}, fmt.Errorf("%w: %w", err, drivers.ErrInvalid)
	}
	return o, o.check()
}

// check refuses mount options that are the driver's business.
func (o options) check() error {
	m := o.mount
	if len(m.Unknown) > 0 {
		hint := mountopt.Hint(m.Unknown[0])
		if hint != "" {
			hint = "; " + hint
		}
		return fmt.Errorf("unknown mount option %s%s: %w", m.Unknown[0], hint, drivers.ErrInvalid)
	}
	for _, taken := range []struct {
		set  bool
		name string
	}{
		{len(m.LowerDirs) > 0, "lowerdir"},
		{m.UpperDir != "", "upperdir"},
		{m.WorkDir != "", "workdir"},
		{m.ReadOnly, "ro"},
		{m.Remount, "remount"},
		{m.Context != "", "context"},
		{m.UIDMap != nil || m.GIDMap != nil, "uidmapping"},
		{m.XattrPermissions != 0, "xattr_permissions"},
	} {
		if taken.set {
			return fmt.Errorf("mount option %s is not for all mounts of a driver: %w", taken.name, drivers.ErrInvalid)
		}
	}
	return nil
}

// isOwn says whether a mount program is plyfs, by its name, as plyfs tells from its own name what it was called as.
func isOwn(program string) bool { return filepath.Base(program) == Name }

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// resolveProgram finds the mount program.
func resolveProgram(program string) (string, error) {
	if program != "" {
		if st, err := os.Stat(program); err != nil || st.Mode()&0o111 == 0 {
			return "", fmt.Errorf("mount_program=%s: %w: %w", program,
				errors.Join(errors.New("no program that can be run"), err), drivers.ErrPrerequisites)
		}
		return program, nil
	}
	// In a mount namespace that was made within a chroot the name of this program's file leads nowhere.
	if self, err := os.Executable(); err == nil && isOwn(self) && exists(self) {
		return self, nil
	}
	program, err := exec.LookPath(Name)
	if err != nil {
		return "", fmt.Errorf("the program %s is not in PATH; install it, or name it with mount_program: %w: %w",
			Name, err, drivers.ErrPrerequisites)
	}
	return filepath.Abs(program)
}

// mountOptions is the option string of a mount; of says how a path of the stack is given.
func (o options) mountOptions(k overlaystore.Stack, of func(path string) string) string {
	m := o.mount
	m.LowerDirs = make([]string, len(k.Lowers))
	for i, l := range k.Lowers {
		m.LowerDirs[i] = of(l)
	}
	if k.Upper != "" {
		m.UpperDir, m.WorkDir = of(k.Upper), of(k.Work)
	}
	m.ReadOnly = k.ReadOnly || k.Upper == ""
	m.Context = k.Label
	if m.ReadOnly {
		m.Volatile = false
	}
	words := []string{m.String()}
	if !m.ReadOnly {
		words = append(words, quotaOptions(k.Quota)...)
	}
	return strings.Join(words, ",")
}

// quotaOptions are the options by which a server bounds what is in its upper.
func quotaOptions(q drivers.Quota) []string {
	var words []string
	if q.Bytes > 0 {
		words = append(words, "quota_bytes="+strconv.FormatInt(q.Bytes, 10))
	}
	if q.Inodes > 0 {
		words = append(words, "quota_inodes="+strconv.FormatInt(q.Inodes, 10))
	}
	return words
}
