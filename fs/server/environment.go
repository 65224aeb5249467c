package server

import (
	"bufio"
	"os"
	"strings"
)

// readEnvironment looks at the process and the system.
func readEnvironment() environment {
	_, aufs := os.LookupEnv("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT")
	// selinuxfs is mounted exactly where SELinux is enabled (cf. libselinux is_selinux_enabled).
	_, err := os.Stat("/sys/fs/selinux/enforce")
	env := environment{root: os.Geteuid() == 0, selinux: err == nil, aufsWhiteouts: aufs}
	if !env.root {
		env.userAllowOther = confAllowsOther("/etc/fuse.conf")
	}
	return env
}

// confAllowsOther reports whether the fuse.conf has the line user_allow_other.
func confAllowsOther(name string) bool {
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		line, _, _ := strings.Cut(s.Text(), "#")
		if strings.TrimSpace(line) == "user_allow_other" {
			return true
		}
	}
	return false
}
