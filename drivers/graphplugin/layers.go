package graphplugin

import (
	"context"
	"errors"
	"fmt"
	"os"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
)

// create serves Create.
func (s *store) create(ctx context.Context, r layerRequest) error {
	o, err := s.createOptions(r)
	if err != nil {
		return err
	}
	if err := drivers.ValidID(r.ID); err != nil {
		return err
	}
	defer s.locks.Lock(r.ID)()
	err = s.driver.Create(ctx, r.ID, r.Parent, o)
	if errors.Is(err, drivers.ErrExists) {
		wanted := drivers.Info{ID: r.ID, Parent: r.Parent}
		if err := s.acceptRepeated(ctx, wanted, err); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if err := writeJSON(s.draftPath(r.ID), draft{Parent: r.Parent, Label: r.MountLabel}); err != nil {
		return errors.Join(err, s.driver.Remove(context.WithoutCancel(ctx), r.ID))
	}
	return nil
}

// createReadWrite serves CreateReadWrite.
func (s *store) createReadWrite(ctx context.Context, r layerRequest) error {
	o, err := s.createOptions(r)
	if err != nil {
		return err
	}
	if o.Quota.IsZero() {
		o.Quota = s.quota
	}
	if err := drivers.ValidID(r.ID); err != nil {
		return err
	}
	defer s.locks.Lock(r.ID)()
	err = s.createWritable(ctx, r.ID, r.Parent, o)
	if errors.Is(err, drivers.ErrExists) {
		wanted := drivers.Info{ID: r.ID, Parent: r.Parent, Writable: true}
		if err = s.acceptRepeated(ctx, wanted, err); err == nil {
			err = s.ownRoot(ctx, r.ID, r.Parent)
		}
	}
	return err
}

func (s *store) createOptions(r layerRequest) (*drivers.CreateOptions, error) {
	q, err := parseQuota(r.StorageOpt)
	return &drivers.CreateOptions{MountLabel: r.MountLabel, Quota: q}, err
}

// createWritable makes a writable layer, of which root of containers owns the root. Precondition: the layer's lock is held.
func (s *store) createWritable(ctx context.Context, id, parent string, o *drivers.CreateOptions) error {
	if err := s.driver.CreateReadWrite(ctx, id, parent, o); err != nil {
		return err
	}
	if err := s.ownRoot(ctx, id, parent); err != nil {
		return errors.Join(err, s.driver.Remove(context.WithoutCancel(ctx), id))
	}
	return nil
}

// ownRoot gives the root of a layer that has it from no parent to root of containers.
func (s *store) ownRoot(ctx context.Context, id, parent string) (err error) {
	if parent != "" || !s.mapped() {
		return nil
	}
	dir, err := s.driver.Get(ctx, id, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.driver.Put(context.WithoutCancel(ctx), id)) }()
	uid, gid, err := s.root()
	if err != nil {
		return err
	}
	return os.Lchown(dir, uid, gid)
}

// acceptRepeated returns nil if the layer that the driver refused to make, since there is one, is exactly the wanted one: not in use,
// with the same parent, and empty. Then dockerd repeats a call because the plugin died before it answered the first; ids are random,
// so the layer is nobody else's. Otherwise it returns refusal, the driver's error.
func (s *store) acceptRepeated(ctx context.Context, wanted drivers.Info, refusal error) error {
	if s.references()[wanted.ID] > 0 {
		return refusal
	}
	same := false
	err := s.driver.List(ctx, func(i drivers.Info) error {
		if i.ID == wanted.ID {
			same = i.Parent == wanted.Parent && i.Writable == wanted.Writable
		}
		return nil
	})
	if err != nil || !same {
		return errors.Join(refusal, err)
	}
	changes, err := s.differ.Changes(ctx, wanted.ID, wanted.Parent)
	if err != nil || len(changes) > 0 {
		return errors.Join(refusal, err)
	}
	s.log.Info("a layer that is to be made is there already, as it is to be", "layer", wanted.ID)
	return nil
}

// get serves Get.
func (s *store) get(ctx context.Context, r layerRequest) (dir string, err error) {
	if err := drivers.ValidID(r.ID); err != nil {
		return "", err
	}
	defer s.locks.Lock(r.ID)()
	d, ok, err := s.readDraft(r.ID)
	if err != nil {
		return "", err
	}
	if ok && !d.Written {
		err := s.exchange(ctx, r.ID, d)
		if errors.Is(err, drivers.ErrInUse) {
			err = s.endDraft(r.ID) // a layer above needs it: nobody is about to write into it
		}
		if err != nil {
			return "", err
		}
	}
	dir, err = s.driver.Get(ctx, r.ID, &drivers.GetOptions{MountLabel: r.MountLabel})
	if err != nil || !s.mapped() {
		return dir, err
	}
	if err := s.admit(dir); err != nil {
		return "", errors.Join(err, s.driver.Put(context.WithoutCancel(ctx), r.ID))
	}
	return dir, nil
}

// put serves Put. The layer need not be mounted: after a crash dockerd gives back what it may not have.
func (s *store) put(ctx context.Context, r layerRequest) error {
	if err := drivers.ValidID(r.ID); err != nil {
		return err
	}
	defer s.locks.Lock(r.ID)()
	if s.references()[r.ID] == 0 {
		there, err := s.driver.Exists(ctx, r.ID)
		if err == nil && !there {
			err = fmt.Errorf("layer %s: %w", r.ID, drivers.ErrNotFound)
		}
		return err
	}
	// What is not unmounted now would stay so: a dockerd that has lost interest does not come back for it.
	ctx = context.WithoutCancel(ctx)
	if err := s.driver.Put(ctx, r.ID); err != nil {
		return err
	}
	if s.references()[r.ID] == 0 && s.isDraft(r.ID) {
		// It is about to become part of an image, of which dockerd keeps a durable record.
		return s.driver.Sync(ctx, r.ID)
	}
	return nil
}

// remove serves Remove. dockerd has no reference that it knows of.
func (s *store) remove(ctx context.Context, r layerRequest) error {
	if err := drivers.ValidID(r.ID); err != nil {
		return err
	}
	defer s.locks.Lock(r.ID)()
	ctx = context.WithoutCancel(ctx)
	s.dropLocked(ctx, r.ID, 0)
	// First, or a crash between the two would bring the layer back.
	if err := s.endDraft(r.ID); err != nil {
		return err
	}
	return s.driver.Remove(ctx, r.ID)
}

// metadata serves GetMetadata: what docker inspect shows as GraphDriver.Data.
func (s *store) metadata(ctx context.Context, r layerRequest) (map[string]string, error) {
	all, err := s.driver.Metadata(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	for key, value := range all {
		if value == "" {
			delete(all, key)
		}
	}
	return all, nil
}

// status serves Status: what docker info shows.
func (s *store) status(ctx context.Context) ([][2]string, error) {
	pairs, err := s.driver.Status(ctx)
	if err != nil {
		return nil, err
	}
	list := [][2]string{{"Driver", s.driver.Name()}}
	for _, p := range pairs {
		list = append(list, [2]string{p.Label, p.Value})
	}
	return list, nil
}

// changes serves Changes: what docker diff shows.
func (s *store) changes(ctx context.Context, r layerRequest) ([]change, error) {
	all, err := s.differ.Changes(ctx, r.ID, r.Parent)
	if err != nil {
		return nil, err
	}
	list := make([]change, len(all))
	for i, c := range all {
		list[i].Path = "/" + c.Path
		switch c.Kind {
		case tarlayer.Add:
			list[i].Kind = changeAdd
		case tarlayer.Delete:
			list[i].Kind = changeDelete
		default:
			list[i].Kind = changeModify
		}
	}
	return list, nil
}
