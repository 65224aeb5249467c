package layerdb

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"plyfs/drivers"
)

// CheckMode says what Check looks at.
type CheckMode int

const (
	// CheckNames compares records, copies, files and the driver's layers by name.
	CheckNames CheckMode = iota
	// CheckContent reads every layer, too.
	CheckContent
)

// RepairMode says what Check does with what it finds.
type RepairMode int

const (
	// ReportOnly changes nothing.
	ReportOnly RepairMode = iota
	// Repair removes what nothing names and makes anew what follows from something else. It removes nothing that is named.
	Repair
)

// CheckOptions are options of Check; the zero value looks at names and changes nothing.
type CheckOptions struct {
	Mode   CheckMode
	Repair RepairMode
}

// Kinds of problems.
const (
	ProblemRecord    = "record"    // a record that cannot be read
	ProblemCopy      = "copy"      // the copy of a record is missing, stale, or of nothing
	ProblemReference = "reference" // a reference is missing, or is of nothing
	ProblemMissing   = "missing"   // something that is named is not there
	ProblemGarbage   = "garbage"   // something that is there is not named
	ProblemContent   = "content"   // a layer is not what was unpacked
)

// Problem is something that is not as it should be.
type Problem struct {
	Kind string `json:"kind"`
	// Object is what it is about: a layer's ChainID, a container, a holder, a snapshot, a file, a driver's layer.
	Object string `json:"object"`
	Detail string `json:"detail"`
	// Remedy is what can be done; empty if it was repaired.
	Remedy   string `json:"remedy,omitempty"`
	Repaired bool   `json:"repaired"`
}

// Report is what Check found.
type Report struct {
	Layers     int       `json:"layers"`
	Containers int       `json:"containers"`
	Holders    int       `json:"holders"`
	Snapshots  int       `json:"snapshots"`
	Problems   []Problem `json:"problems"`
}

// OK says whether there is no problem left.
func (r Report) OK() bool {
	for _, p := range r.Problems {
		if !p.Repaired {
			return false
		}
	}
	return true
}

const (
	remedyRepair = "check with --repair"
	remedyImport = "import or pull the image again"
	// What is there keeps its place until it is removed.
	remedyReplace = "remove the images that use it, and " + remedyImport
	// What containerd knows of a snapshot is its own affair.
	remedySnapshot = "have containerd remove the images and containers that use it, and " + remedyImport
)

// Check compares all that the store has with what its database names. It is alone in the store while it looks at names, and
// reads content beside other operations. The error is that of looking or repairing; what is wrong with the store is in the
// report.
func (s *Store) Check(ctx context.Context, o CheckOptions) (Report, error) {
	layers, rep, err := s.checkNames(ctx, o)
	if err != nil || o.Mode != CheckContent {
		return rep, err
	}
	for _, l := range layers {
		err := s.Verify(ctx, l.ID)
		if err == nil {
			err = s.verifyStream(l)
		}
		switch {
		case errors.Is(err, drivers.ErrNotFound) && !errors.Is(err, drivers.ErrDamaged):
			// Removed meanwhile, or reported as missing.
		case errors.Is(err, drivers.ErrDamaged):
			rep.Problems = append(rep.Problems, Problem{
				Kind: ProblemContent, Object: l.ID.String(), Detail: err.Error(),
				Remedy: remedyReplace,
			})
		case err != nil:
			return rep, err
		}
	}
	return rep, nil
}

func (s *Store) checkNames(ctx context.Context, o CheckOptions) ([]Layer, Report, error) {
	leave, err := s.gate.enterAlone(ctx, "a check")
	if err != nil {
		return nil, Report{}, err
	}
	defer leave()
	c := &check{store: s, opt: o}
	for _, step := range []func(context.Context) error{c.records, c.references, c.parents, c.driver, c.files, c.copies} {
		if err := step(ctx); err != nil {
			return nil, c.rep, err
		}
	}
	return c.layers(), c.rep, nil
}

// check is the state of one Check.
type check struct {
	store *Store
	opt   CheckOptions
	rep   Report
	meta  meta
	// all are the records, by key; users are the references, by key.
	all   map[string]Record
	users map[string]bool
	// ids are the records that have a layer in the driver, by its id there.
	ids map[string]Record
	// damaged are the keys of the records whose layer the driver calls damaged.
	damaged map[string]bool
}

// found reports a problem. If repairing was asked for it calls fix, which is nil for what cannot be repaired.
func (c *check) found(p Problem, fix func() error) error {
	switch {
	case fix == nil:
	case c.opt.Repair == Repair:
		if err := fix(); err != nil {
			return fmt.Errorf("repair %s: %w", p.Object, err)
		}
		p.Repaired, p.Remedy = true, ""
	case p.Remedy == "":
		p.Remedy = remedyRepair
	}
	c.rep.Problems = append(c.rep.Problems, p)
	return nil
}

// layers returns the layers whose content has yet to be checked: those with a readable record that the driver does not call damaged.
func (c *check) layers() (list []Layer) {
	for key, r := range c.all {
		if r.Layer != nil && !c.damaged[key] {
			list = append(list, *r.Layer)
		}
	}
	return parentsFirst(list)
}

// records reads the whole database, and reports records that cannot be read: their copies repair them.
func (c *check) records(ctx context.Context) error {
	c.all, c.users, c.ids = make(map[string]Record), make(map[string]bool), make(map[string]Record)
	bad := make(map[string]error)
	err := c.store.view(func(t *tx) (err error) {
		if c.meta, err = t.meta(); err != nil {
			return err
		}
		return t.Scan(nil, func(key, value []byte) error {
			switch k := string(key); {
			case strings.HasPrefix(k, userPrefix):
				c.users[k] = true
			case k != metaKey && !strings.HasPrefix(k, workPrefix):
				if r, err := decodeAt(k, value); err != nil {
					bad[k] = err
				} else {
					c.all[k] = r
				}
			}
			return ctx.Err()
		})
	})
	if err != nil {
		return err
	}
	if err := c.badRecords(bad); err != nil {
		return err
	}
	for _, r := range c.all {
		switch {
		case r.Layer != nil:
			c.rep.Layers++
			c.ids[r.Layer.CacheID] = r
		case r.Container != nil:
			c.rep.Containers++
			c.ids[r.Container.ID] = r
		case r.Snapshot != nil:
			c.rep.Snapshots++
			if r.Snapshot.hasLayer() {
				c.ids[r.Snapshot.ID] = r
			}
		default:
			c.rep.Holders++
		}
	}
	return nil
}

func (c *check) badRecords(bad map[string]error) error {
	if len(bad) == 0 {
		return nil
	}
	copies, _, err := readCopies(c.store.path(recordsDir))
	if err != nil {
		return err
	}
	for key, why := range bad {
		p := Problem{Kind: ProblemRecord, Object: key, Detail: why.Error()}
		r, ok := copies[key]
		if !ok {
			p.Remedy = remedyImport
			if err := c.found(p, nil); err != nil {
				return err
			}
			continue
		}
		if err := c.found(p, func() error { return c.store.putRecord(r) }); err != nil {
			return err
		}
		c.all[key] = r
	}
	return nil
}

func (s *Store) putRecord(r Record) error {
	_, err := s.update(func(t *tx) ([]work, error) { return nil, t.put(r) })
	return err
}

// wants returns the keys of the references (u/) that follow from the record, each with the layer that it keeps.
func (r Record) wants() map[string]ChainID {
	w := make(map[string]ChainID)
	switch {
	case r.Layer != nil && r.Layer.Parent != "":
		w[userKey(r.Layer.Parent, userLayer, string(r.Layer.ID))] = r.Layer.Parent
	case r.Container != nil && r.Container.Parent != "":
		w[userKey(r.Container.Parent, userContainer, r.Container.Name)] = r.Container.Parent
	case r.Holder != nil:
		for _, id := range r.Holder.Layers {
			w[userKey(id, r.Holder.Kind, r.Holder.Key)] = id
		}
	}
	return w
}

// references compares the references in the database with those that follow from the records.
func (c *check) references(ctx context.Context) error {
	wanted := make(map[string]bool)
	for key, r := range c.all {
		for user, id := range r.wants() {
			wanted[user] = true
			if _, ok := c.all[layerKey(id)]; !ok {
				err := c.found(Problem{
					Kind: ProblemMissing, Object: id.String(), Detail: "the layer is not in the database, but " + key + " needs it",
					Remedy: remedyImport,
				}, nil)
				if err != nil {
					return err
				}
			}
			if c.users[user] {
				continue
			}
			err := c.found(Problem{Kind: ProblemReference, Object: key, Detail: "reference " + user + " is missing"}, func() error {
				return c.store.setUser(user, []byte{'1'})
			})
			if err != nil {
				return err
			}
		}
	}
	for user := range c.users {
		if wanted[user] {
			continue
		}
		err := c.found(Problem{Kind: ProblemReference, Object: user, Detail: "a reference by something that is not there"}, func() error {
			return c.store.setUser(user, nil)
		})
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// parents reports snapshots over a parent that is not there, or is not committed.
func (c *check) parents(ctx context.Context) error {
	for key, r := range c.all {
		if r.Snapshot == nil || r.Snapshot.Parent == "" {
			continue
		}
		if p, ok := c.all[snapshotKey(r.Snapshot.Parent)]; ok && p.Snapshot.Kind == SnapshotCommitted {
			continue
		}
		err := c.found(Problem{
			Kind: ProblemMissing, Object: snapshotKey(r.Snapshot.Parent), Detail: "there is no such committed snapshot, but " + key + " needs it",
			Remedy: remedySnapshot,
		}, nil)
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// setUser sets or (nil) deletes a reference.
func (s *Store) setUser(key string, value []byte) error {
	_, err := s.update(func(t *tx) ([]work, error) {
		if value == nil {
			return nil, t.delete(key)
		}
		return nil, t.Set([]byte(key), value)
	})
	return err
}

// driver compares the driver's layers with the records, and reports interrupted operations: a sweep repairs those.
func (c *check) driver(ctx context.Context) error {
	s := c.store
	var works []work
	if err := s.view(func(t *tx) (err error) {
		works, err = t.works(s.drv.Name())
		return err
	}); err != nil {
		return err
	}
	busy := make(map[string]bool)
	for _, w := range works {
		busy[w.ID] = true
	}
	if len(works) > 0 {
		p := Problem{Kind: ProblemGarbage, Object: "interrupted operations", Detail: fmt.Sprintf("there are %d", len(works))}
		if err := c.found(p, func() error { _, err := s.sweep(ctx, s.drv); return err }); err != nil {
			return err
		}
	}
	there := make(map[string]bool)
	var unnamed []work
	c.damaged = make(map[string]bool)
	err := s.drv.List(ctx, func(i drivers.Info) error {
		there[i.ID] = true
		r, ok := c.ids[i.ID]
		switch {
		case !ok && !busy[i.ID]:
			unnamed = append(unnamed, work{Driver: s.drv.Name(), ID: i.ID, Parent: i.Parent})
		case ok && i.Damaged != "":
			c.damaged[r.key()] = true
			return c.found(Problem{Kind: ProblemContent, Object: r.key(), Detail: i.Damaged, Remedy: damagedRemedy(r)}, nil)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list the layers of driver %s: %w", s.drv.Name(), err)
	}
	for _, w := range topDown(unnamed) {
		p := Problem{Kind: ProblemGarbage, Object: w.ID, Detail: "driver " + w.Driver + " has a layer that the database does not name"}
		if err := c.found(p, func() error { return s.discardAll(ctx, s.drv, []work{w}) }); err != nil {
			return err
		}
	}
	for id, r := range c.ids {
		if there[id] {
			continue
		}
		p := Problem{
			Kind: ProblemMissing, Object: r.key(), Detail: "driver " + s.drv.Name() + " does not have its layer " + id,
			Remedy: missingRemedy(r),
		}
		if err := c.found(p, nil); err != nil {
			return err
		}
	}
	return nil
}

// missingRemedy is what can be done about something that the driver has lost. A layer that is registered again comes back in its
// place; what was written in a container does not.
func missingRemedy(r Record) string {
	if r.Layer != nil {
		return remedyImport
	}
	return damagedRemedy(r)
}

// damagedRemedy is missingRemedy for something that is there, and of no use.
func damagedRemedy(r Record) string {
	switch {
	case r.Container != nil:
		return "remove the container"
	case r.Snapshot != nil:
		return remedySnapshot
	}
	return remedyReplace
}

// files compares the files of streams with the layers.
func (c *check) files(context.Context) error {
	s := c.store
	named := make(map[string]bool)
	for _, r := range c.all {
		if r.Layer == nil {
			continue
		}
		path := s.streamPath(*r.Layer)
		named[filepath.Base(path)] = true
		if exists(path) {
			continue
		}
		err := c.found(Problem{
			Kind: ProblemMissing, Object: r.Layer.ID.String(), Detail: "what was kept of its stream is not there; it cannot be exported",
			Remedy: remedyImport,
		}, nil)
		if err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(s.path(streamsDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if named[e.Name()] {
			continue
		}
		path := s.path(streamsDir, e.Name())
		p := Problem{Kind: ProblemGarbage, Object: path, Detail: "it is of no layer"}
		if err := c.found(p, func() error { return removeFile(path) }); err != nil {
			return err
		}
	}
	return nil
}
