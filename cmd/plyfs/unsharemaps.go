package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
)

// idRange is a range of ids that a user may give away, of /etc/subuid or /etc/subgid.
type idRange struct{ start, count uint32 }

// mapIDs maps the ids of a process in a new user namespace: its root is this user, the following ids the subordinate ones.
// Without those, or without the programs that map them, there is root alone, and warn is told what that means.
func mapIDs(pid int, warn io.Writer) error {
	uids, gids, why := subordinates()
	if why == "" {
		err := errors.Join(
			mapWith("newuidmap", pid, os.Getuid(), uids),
			mapWith("newgidmap", pid, os.Getgid(), gids),
		)
		if err != nil {
			return faultf(storeUnsupported, "map the subordinate ids of /etc/subuid and /etc/subgid: %v", err)
		}
		return nil
	}
	fmt.Fprintf(warn, "plyfs: %s: all files will belong to one user, and layers with other owners may be refused\n", why)
	return mapAlone(pid)
}

// subordinates returns the ranges of this user, or why there are none to be had.
func subordinates() (uids, gids []idRange, why string) {
	for _, program := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, nil, "there is no " + program + " (package uidmap)"
		}
	}
	name := ""
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	for _, f := range []struct {
		path   string
		ranges *[]idRange
	}{{"/etc/subuid", &uids}, {"/etc/subgid", &gids}} {
		text, err := os.ReadFile(f.path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err.Error()
		}
		if *f.ranges = parseSubordinates(text, name, os.Getuid()); len(*f.ranges) == 0 {
			return nil, nil, fmt.Sprintf("%s has no ids for user %s", f.path, knownOr(name))
		}
	}
	return uids, gids, ""
}

// parseSubordinates reads the lines NAME:START:COUNT and UID:START:COUNT of a user; what is no such line is ignored, as by
// the programs that map, which have the last word.
func parseSubordinates(text []byte, name string, uid int) (ranges []idRange) {
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		fields := strings.Split(strings.TrimSpace(s.Text()), ":")
		if len(fields) != 3 || fields[0] != strconv.Itoa(uid) && (name == "" || fields[0] != name) {
			continue
		}
		start, err1 := strconv.ParseUint(fields[1], 10, 32)
		count, err2 := strconv.ParseUint(fields[2], 10, 32)
		if err1 != nil || err2 != nil || count == 0 || start+count > 1<<32-1 {
			continue
		}
		ranges = append(ranges, idRange{uint32(start), uint32(count)})
	}
	return ranges
}

// mapWith runs newuidmap or newgidmap, which have the privilege and check that the ranges are the user's.
func mapWith(program string, pid, self int, ranges []idRange) error {
	args := []string{strconv.Itoa(pid), "0", strconv.Itoa(self), "1"}
	next := uint64(1)
	for _, r := range ranges {
		args = append(args, fmt.Sprint(next), fmt.Sprint(r.start), fmt.Sprint(r.count))
		next += uint64(r.count)
	}
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(out))
	}
	return nil
}

// mapAlone maps this user alone, which the kernel allows if the namespace gives up changing groups.
func mapAlone(pid int) error {
	proc := fmt.Sprintf("/proc/%d/", pid)
	for _, f := range [][2]string{
		{"setgroups", "deny"},
		{"uid_map", fmt.Sprintf("0 %d 1\n", os.Getuid())},
		{"gid_map", fmt.Sprintf("0 %d 1\n", os.Getgid())},
	} {
		if err := os.WriteFile(proc+f[0], []byte(f[1]), 0); err != nil {
			return faultf(storeUnsupported, "map the user's id: %v", err)
		}
	}
	return nil
}
