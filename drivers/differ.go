package drivers

import (
	"context"
	"errors"
	"fmt"
	"io"

	"plyfs/cow/layer"
	"plyfs/cow/tarlayer"
)

// Filler is implemented by a driver that has no Differ of its own and shows an image layer read-only: DifferOf unpacks
// through it instead of through Get.
type Filler interface {
	// Fill calls fn with the path of the root of an image layer that was just created, writable as long as fn runs. The
	// layer is complete when Fill returns nil; after an error it is good for nothing but Remove.
	Fill(ctx context.Context, id string, fn func(root string) error) error
}

// DifferOf returns d's own Differ, and for a driver that has none the naive one.
func DifferOf(d Driver) Differ {
	if own, ok := d.(Differ); ok {
		return own
	}
	return NaiveDiffer(d)
}

// NaiveDiffer returns a Differ that works with any driver: it mounts both layers and compares the two trees, name by
// name. What is mounted beneath a layer's root belongs to others, and never shows in a difference.
func NaiveDiffer(d Driver) Differ { return naiveDiffer{d} }

type naiveDiffer struct{ d Driver }

// Diff implements Differ. The layers stay mounted until the stream is closed.
func (n naiveDiffer) Diff(ctx context.Context, id, parent string, o *DiffOptions) (io.ReadCloser, error) {
	p, err := n.open(ctx, id, parent)
	if err != nil {
		return nil, err
	}
	if o == nil {
		o = &DiffOptions{}
	}
	return Stream(ctx, func(ctx context.Context, w io.Writer) error { return p.write(ctx, w, *o) }, p.close), nil
}

// Changes implements Differ.
func (n naiveDiffer) Changes(ctx context.Context, id, parent string) (list []tarlayer.Change, err error) {
	p, err := n.open(ctx, id, parent)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	return p.changes(ctx)
}

// DiffSize implements Differ.
func (n naiveDiffer) DiffSize(ctx context.Context, id, parent string) (size int64, err error) {
	p, err := n.open(ctx, id, parent)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	list, err := p.changes(ctx)
	if err != nil {
		return 0, err
	}
	src := tarlayer.NewDirSource(p.newer.root, tarlayer.DirOptions{})
	defer func() { err = errors.Join(err, src.Close()) }()
	return tarlayer.Size(ctx, src, list)
}

// ApplyDiff implements Differ.
func (n naiveDiffer) ApplyDiff(
	ctx context.Context, id string, r io.Reader, o *ApplyOptions,
) (res tarlayer.ApplyResult, err error) {
	if o == nil {
		o = &ApplyOptions{}
	}
	unpack := func(root string) error {
		res, err = Unpack(ctx, root, r, o)
		return err
	}
	if f, ok := n.d.(Filler); ok {
		err = f.Fill(ctx, id, unpack)
	} else {
		err = n.with(ctx, id, unpack)
	}
	if err != nil {
		return res, fmt.Errorf("unpack into layer %s: %w", id, err)
	}
	return res, nil
}

// with calls fn with the root of a layer.
func (n naiveDiffer) with(ctx context.Context, id string, fn func(root string) error) (err error) {
	root, err := n.d.Get(ctx, id, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.put(ctx, id)) }()
	return fn(root)
}

// put gives back what was got also for a caller who has lost interest.
func (n naiveDiffer) put(ctx context.Context, id string) error {
	return n.d.Put(context.WithoutCancel(ctx), id)
}

// pair is two layers, accessible.
type pair struct {
	newer, older view
	name         string
}

// view is the tree of one layer, without what is mounted in it.
type view struct {
	root *layer.Layer
	// foreign says of a path that it belongs to what is mounted in the tree; nil if the view shows no such thing.
	foreign func(path string) bool
	undo    []func() error
}

func (v *view) close() error {
	var errs []error
	for i := len(v.undo) - 1; i >= 0; i-- {
		errs = append(errs, v.undo[i]())
	}
	return errors.Join(errs...)
}

func (n naiveDiffer) open(ctx context.Context, id, parent string) (p *pair, err error) {
	p = &pair{name: id}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("compare layer %s with %q: %w", id, parent, err), p.close())
		}
	}()
	if err := n.view(ctx, id, &p.newer); err != nil {
		return p, err
	}
	if parent == "" {
		return p, nil
	}
	return p, n.view(ctx, parent, &p.older)
}

// view makes a layer accessible. What it has done before an error, v.close undoes.
func (n naiveDiffer) view(ctx context.Context, id string, v *view) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	root, err := n.d.Get(ctx, id, &GetOptions{Any: true})
	if err != nil {
		return err
	}
	v.undo = append(v.undo, func() error { return n.put(ctx, id) })
	if v.root, v.foreign, err = OpenBare(root); err != nil {
		return err
	}
	v.undo = append(v.undo, v.root.Close)
	return nil
}

func (p *pair) close() error { return errors.Join(p.older.close(), p.newer.close()) }

// changes compares the trees.
func (p *pair) changes(ctx context.Context) ([]tarlayer.Change, error) {
	var list []tarlayer.Change
	var err error
	if p.older.root == nil {
		list, err = everything(ctx, p.newer.root)
	} else {
		list, err = Compare(ctx, p.older.root, p.newer.root)
	}
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", p.name, err)
	}
	return withoutForeign(list, p.newer.foreign), nil
}

// write writes what changes says.
func (p *pair) write(ctx context.Context, w io.Writer, o DiffOptions) (err error) {
	list, err := p.changes(ctx)
	if err != nil {
		return err
	}
	src := tarlayer.NewDirSource(p.newer.root, tarlayer.DirOptions{})
	defer func() { err = errors.Join(err, src.Close()) }()
	return tarlayer.Write(ctx, w, src, list, o)
}
