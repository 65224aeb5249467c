package control

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// State says how a mount does.
type State string

// The states.
const (
	// StateOK: its server answers.
	StateOK State = "ok"
	// StateNoSocket: it is served, by a server that can't be asked.
	StateNoSocket State = "no socket"
	// StateSilent: its server lives and does not answer in time.
	StateSilent State = "not answering"
	// StateNoServer: its server ended, so that every use of the mount fails with ENOTCONN.
	StateNoServer State = "no server"
)

// Found is a mount with all that could be found out.
type Found struct {
	// Status is complete in StateOK; else it has what /proc tells. Of a mount without a server only Target, Type and Device are
	// known.
	Status
	Owner
	// UID is the user of the server.
	UID   uint32 `json:"uid"`
	State State  `json:"state"`
	// Foreign says that Target is a path of another mount namespace.
	Foreign bool `json:"foreign,omitempty"`

	// Socket is the zero value for a mount that has none.
	Socket Socket `json:"-"`
}

// answerWithin is how long a server may take for its status.
const answerWithin = 2 * time.Second

// atOnce is how many servers are asked at a time.
const atOnce = 16

// settlesWithin is how long a server may be on its way to its socket, or from there to its end, before it counts as one that has none.
const settlesWithin = 200 * time.Millisecond

// Gather finds the mounts of a scope: by their sockets, then those that have none in /proc and among the mounts of this mount namespace.
// It is sorted by target. A server that does not answer costs two seconds, one without a socket a fifth of one, for all of them.
func Gather(ctx context.Context, s Scope) ([]Found, error) {
	mounts, err := Mounts() // first: so their servers are found, but for those that end meanwhile
	if err != nil {
		return nil, err
	}
	sockets, err := List(s)
	if err != nil && !errors.Is(err, ErrNoRuntimeDir) {
		return nil, err
	}
	processes, err := Servers(ctx)
	if err != nil {
		return nil, err
	}
	found, processes := match(askAll(ctx, sockets), processes)
	if s == Own { // a socket in the directory of this user counts, whoever its server runs as
		processes = slices.DeleteFunc(processes, func(p Process) bool { return int(p.UID) != os.Geteuid() })
	}
	found, processes = awaitSockets(ctx, s, found, processes)
	for _, p := range processes {
		f := Found{State: StateNoSocket, UID: p.UID, Foreign: p.Foreign}
		f.PID = p.PID
		f.fill(p)
		found = append(found, f)
	}
	if found, err = addMounts(ctx, found, mounts); err != nil {
		return nil, err
	}
	owners := NewOwners()
	for i := range found {
		found[i].Owner = owners.Find(found[i].Target, found[i].Upper, found[i].UID)
	}
	slices.SortFunc(found, func(a, b Found) int { return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.PID, b.PID)) })
	return found, ctx.Err()
}

// match tells found what /proc knows of them, and returns the processes that are none of theirs.
func match(found []Found, processes []Process) ([]Found, []Process) {
	for i := range found {
		f := &found[i]
		at := slices.IndexFunc(processes, func(p Process) bool { return p.PID == f.PID })
		if at < 0 {
			continue
		}
		if f.State != StateOK {
			f.fill(processes[at])
		}
		f.Foreign = processes[at].Foreign
		processes = slices.Delete(processes, at, at+1)
	}
	return found, processes
}

// awaitSockets adds to found those of processes that have a socket after all, for they had just started when the sockets were listed,
// and returns those that live on without one: a server that ends takes its socket away first.
func awaitSockets(ctx context.Context, s Scope, found []Found, processes []Process) ([]Found, []Process) {
	for end := time.Now().Add(settlesWithin); len(processes) > 0 && time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(settlesWithin / 20)
		sockets, err := List(s)
		if err != nil {
			break // they have been listed before, so there is no place for them
		}
		sockets = slices.DeleteFunc(sockets, func(s Socket) bool {
			return !slices.ContainsFunc(processes, func(p Process) bool { return p.PID == s.PID })
		})
		var newcomers []Found
		newcomers, processes = match(askAll(ctx, sockets), processes)
		found = append(found, newcomers...)
		processes = slices.DeleteFunc(processes, func(p Process) bool { return !serves(p.PID) })
	}
	return found, processes
}

// askAll asks every server for its status. Those that are gone are left out.
func askAll(ctx context.Context, sockets []Socket) []Found {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	all := make([]Found, len(sockets))
	Each(sockets, func(i int, s Socket) {
		f := &all[i]
		f.Socket, f.UID = s, s.UID
		var err error
		f.Status, err = s.Status(ctx)
		switch {
		case err == nil:
			f.State = StateOK
		case errors.Is(err, ErrGone):
		case errors.Is(err, ErrRefused):
			f.State, f.PID = StateNoSocket, s.PID
		default:
			f.State, f.PID = StateSilent, s.PID
		}
	})
	return slices.DeleteFunc(all, func(f Found) bool { return f.State == "" })
}

// Each calls visit for every socket with its index, for some of them at a time, and waits.
func Each(sockets []Socket, visit func(int, Socket)) {
	room := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for i, s := range sockets {
		room <- struct{}{}
		all.Go(func() {
			defer func() { <-room }()
			visit(i, s)
		})
	}
	all.Wait()
}

// fill takes over what /proc tells of a server that said nothing.
func (f *Found) fill(p Process) {
	f.Started, f.ResidentBytes, f.Target = p.Started, p.ResidentBytes, p.Target
	for o := range strings.SplitSeq(p.Options, ",") {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "lowerdir":
			f.Lowers = strings.Split(value, ":")
		case "upperdir":
			f.Upper = value
		case "ro":
			f.ReadOnly = true
		}
	}
	f.ReadOnly = f.ReadOnly || f.Upper == ""
}

// addMounts adds those of mounts that none of found serves, if they are surely of plyfs or have lost their server, and are there still;
// and it tells those in found that have no socket what type they are.
func addMounts(ctx context.Context, found []Found, mounts []Mount) ([]Found, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	var unserved []Found
	for _, m := range mounts {
		if i := slices.IndexFunc(found, func(f Found) bool { return f.serves(m) }); i >= 0 {
			if f := &found[i]; f.Device == "" {
				f.Target, f.Type, f.Device = m.Target, m.Type, m.Device
			}
			continue
		}
		f := Found{State: StateNoSocket}
		f.Target, f.Type, f.Device = m.Target, m.Type, m.Device
		switch err := Probe(ctx, m.Target); {
		case errors.Is(err, ErrNoServer):
			f.State = StateNoServer
		case err != nil:
			f.State = StateSilent
		case m.Type != "fuse.plyfs":
			continue // fuse-overlayfs itself
		}
		unserved = append(unserved, f)
	}
	if len(unserved) == 0 {
		return found, nil
	}
	now, err := Mounts()
	if err != nil {
		return nil, err
	}
	for _, f := range unserved {
		if slices.ContainsFunc(now, func(m Mount) bool { return m.Device == f.Device }) {
			found = append(found, f)
		}
	}
	return found, nil
}

// serves reports whether m is the mount.
func (f *Found) serves(m Mount) bool {
	if f.Device != "" {
		return f.Device == m.Device
	}
	if f.Foreign || f.PID == 0 {
		return false
	}
	if filepath.IsAbs(f.Target) {
		return f.Target == m.Target
	}
	return f.Target != "" && strings.HasSuffix(m.Target, "/"+filepath.Clean(f.Target))
}
