package daemon

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
	"plyfs/internal/typo"
)

const (
	// systemConfig is root's configuration file.
	systemConfig = "/etc/plyfs/config.toml"
	// userConfig is a user's, in the directory of their configurations.
	userConfig = "plyfs/config.toml"
	// maxConfig is more than any configuration has, in bytes.
	maxConfig = 1 << 20
	// overflowID stands, in a user namespace, for every owner that the namespace has no number for.
	overflowID = 65534
)

// DefaultConfig returns the path of the configuration file that is read where none is named: /etc/plyfs/config.toml for root,
// plyfs/config.toml in the configuration directory (XDG_CONFIG_HOME, else ~/.config) for others, which include the root of a
// user's namespace. It is empty if the user has no home.
func DefaultConfig() string {
	if os.Geteuid() == 0 && !inUserNamespace() {
		return systemConfig
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, userConfig)
}

// inUserNamespace reports whether numbers of users here are not those of the machine.
func inUserNamespace() bool {
	same, err := sys.IdentityMapped()
	return err == nil && !same
}

// applyConfig sets the flags of c's command that neither the command line nor the environment set from the configuration file.
func applyConfig(c *cli.Context) error {
	path, named := c.Path(flagConfig), true
	if path == "" {
		path, named = DefaultConfig(), false
	}
	if path == "" {
		return nil
	}
	text, err := readConfig(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return nil
	}
	if err != nil {
		return usagef("configuration: %v", err)
	}
	entries, err := parseConfig(path, text)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := e.apply(c, path); err != nil {
			return err
		}
	}
	return nil
}

// readConfig reads the file, which must be one that nobody but its owner may have written, and its owner root or this user: who
// writes it decides what a daemon of this user mounts.
func readConfig(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("fstat %s: %w", path, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("%s is not a regular file", path)
	case !trusted(st.Uid):
		return nil, fmt.Errorf("%s belongs to user %d; give it to root, or to the user that the daemon runs as", path, st.Uid)
	case st.Mode&0o022 != 0:
		return nil, fmt.Errorf("%s can be written by others (mode %04o); chmod go-w %s", path, st.Mode&0o7777, path)
	case st.Size > maxConfig:
		return nil, fmt.Errorf("%s has %d bytes, at most %d are a configuration", path, st.Size, maxConfig)
	}
	return io.ReadAll(io.LimitReader(f, maxConfig))
}

// trusted reports whether what belongs to uid can be relied on as much as this process: root's, its own, and, in a user namespace,
// what belongs to users outside of it, who made the namespace.
func trusted(uid uint32) bool {
	return uid == 0 || int(uid) == os.Geteuid() || uid == overflowID && inUserNamespace()
}

// entry is one key of the file.
type entry struct {
	line  int
	table string
	key   string
	value any
}

// at names the place for messages.
func (e entry) at(path string) string { return fmt.Sprintf("%s:%d", path, e.line) }

// apply checks the entry against the flags of its daemon, whichever that is, and sets the flag if the daemon is c's command.
func (e entry) apply(c *cli.Context, path string) error {
	daemons := daemonsOf(c)
	if e.table == "" {
		return usagef("%s: %s stands outside of a table; write it below [%s]", e.at(path), e.key, strings.Join(names(daemons), "] or ["))
	}
	i := slices.IndexFunc(daemons, func(d *cli.Command) bool { return d.Name == e.table })
	if i < 0 {
		return usagef("%s: there is no table [%s]%s", e.at(path), e.table, meant(e.table, names(daemons), "[%s]"))
	}
	if e.key == "" {
		return nil
	}
	flag := keyOf(daemons[i], e.key)
	if flag == nil {
		return usagef("%s: [%s] has no key %s%s", e.at(path), e.table, e.key, meant(e.key, keys(daemons[i]), "%s"))
	}
	text, err := valueOf(flag, e.value)
	if err != nil {
		return usagef("%s: %s: %v", e.at(path), e.key, err)
	}
	if e.table != c.Command.Name || c.IsSet(e.key) {
		return nil
	}
	for _, t := range text {
		if err := c.Set(e.key, t); err != nil {
			return usagef("%s: %s: %v", e.at(path), e.key, err)
		}
	}
	return nil
}

// daemonsOf returns the commands that have a table in the file: those beside c's with a flag for it.
func daemonsOf(c *cli.Context) []*cli.Command {
	var out []*cli.Command
	for _, d := range c.App.Commands {
		if slices.ContainsFunc(d.Flags, func(f cli.Flag) bool { return f.Names()[0] == flagConfig }) {
			out = append(out, d)
		}
	}
	return out
}

func names(daemons []*cli.Command) []string {
	var out []string
	for _, d := range daemons {
		out = append(out, d.Name)
	}
	return out
}

// keys returns the keys of a daemon's table.
func keys(d *cli.Command) []string {
	var out []string
	for _, f := range d.Flags {
		if name := f.Names()[0]; name != flagConfig && f != cli.HelpFlag {
			out = append(out, name)
		}
	}
	return out
}

// keyOf returns the flag that key stands for, or nil.
func keyOf(d *cli.Command, key string) cli.Flag {
	if !slices.Contains(keys(d), key) {
		return nil
	}
	i := slices.IndexFunc(d.Flags, func(f cli.Flag) bool { return f.Names()[0] == key })
	return d.Flags[i]
}

// meant suggests the candidate that word is a slip of; if there is none, it lists all.
func meant(word string, candidates []string, format string) string {
	if best := typo.Nearest(word, candidates); best != "" {
		return "; did you mean " + fmt.Sprintf(format, best) + "?"
	}
	var list []string
	for _, c := range candidates {
		list = append(list, fmt.Sprintf(format, c))
	}
	return "; there are " + strings.Join(list, ", ")
}
