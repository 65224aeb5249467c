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

// Gather finds the mounts of a scope: by their sockets, then those that have none in /proc and among the mounts of this mount namespace.
// It is sorted by target. A server that does not answer costs two seconds, for all of them.
func Gather(ctx context.Context, s Scope) ([]Found, error) {
	sockets, err := List(s)
	if err != nil && !errors.Is(err, ErrNoRuntimeDir) {
		return nil, err
	}
	processes, err := Servers(ctx)
	if err != nil {
		return nil, err
	}
	found := askAll(ctx, sockets)
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
	for _, p := range processes {
		if s == Own && int(p.UID) != os.Geteuid() {
			continue
		}
		f := Found{State: StateNoSocket, UID: p.UID, Foreign: p.Foreign}
		f.PID = p.PID
		f.fill(p)
		found = append(found, f)
	}
	if found, err = addMounts(ctx, found); err != nil {
		return nil, err
	}
	owners := NewOwners()
	for i := range found {
		found[i].Owner = owners.Find(found[i].Target, found[i].Upper, found[i].UID)
	}
	slices.SortFunc(found, func(a, b Found) int { return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.PID, b.PID)) })
	return found, ctx.Err()
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

// addMounts adds the mounts of this mount namespace that none of found serves, if they are surely of plyfs or have lost their server;
// and it tells those in found that have no socket what type they are.
func addMounts(ctx context.Context, found []Found) ([]Found, error) {
	mounts, err := Mounts()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
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
		found = append(found, f)
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
