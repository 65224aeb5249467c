package drivers

import (
	"context"
	"io"

	"plyfs/cow/tarlayer"
)

// Driver keeps layers; see the package doc for their life.
//
// An id is what ValidID accepts; every method refuses another with ErrInvalid. A method that is given the id of a layer
// that is not there returns an error that wraps ErrNotFound, if it does not say otherwise. All methods block on disk
// I/O, end early with ctx's error where they can, and leave what they were asked to change as it was when they fail.
type Driver interface {
	// Name is the name of the driver, as in the registry. It does not block.
	Name() string

	// Create makes an image layer that shows what its parent shows; parent is "" for an empty root. The error wraps
	// ErrExists if there is such a layer, ErrNotFound if there is no such parent.
	Create(ctx context.Context, id, parent string, o *CreateOptions) error

	// CreateReadWrite makes a writable layer over parent; errors are those of Create, and ErrNotSupported for a quota that
	// this driver cannot enforce here.
	CreateReadWrite(ctx context.Context, id, parent string, o *CreateOptions) error

	// Remove deletes a layer and its content, durably: a power cut does not bring it back. The error wraps ErrInUse while the
	// layer is mounted or is the parent of another, where the driver would break that other. A layer that is not there is no
	// error.
	Remove(ctx context.Context, id string) error

	// Get makes the tree of a layer accessible and returns the absolute path of its root. Each Get wants a Put. An image
	// layer is mounted read-only where the driver can, and must not be written to anyway.
	Get(ctx context.Context, id string, o *GetOptions) (root string, err error)

	// Put gives back one Get; the last one unmounts and returns when all that was written through the mount is in the
	// layer. A Put without Get is an error that wraps ErrInvalid.
	Put(ctx context.Context, id string) error

	// Exists says whether there is such a layer.
	Exists(ctx context.Context, id string) (bool, error)

	// List calls fn for every layer, in no particular order, and ends at fn's first error, which it returns. A layer that is
	// damaged keeps it from no other.
	List(ctx context.Context, fn func(Info) error) error

	// Status describes the driver: pairs of a label and a value, in the order in which they are shown.
	Status(ctx context.Context) ([]Pair, error)

	// Metadata describes one layer for people and for tests: the keys are the driver's own, and constant.
	Metadata(ctx context.Context, id string) (map[string]string, error)

	// Usage is what the layer takes up beyond its parent.
	Usage(ctx context.Context, id string) (Usage, error)

	// Sync makes the content of layers durable: after a power cut they are as they are now.
	Sync(ctx context.Context, ids ...string) error

	// Cleanup removes what interrupted operations left behind, and drops references to mounts that are gone. Mounts in use
	// stay. It is called after opening a store, before anything else.
	Cleanup(ctx context.Context) error

	// Close ends the use of the driver by this process. Layers and mounts stay.
	Close() error
}

// Differ reads and makes differences between layers. A driver that can do it faster or better than by comparing two
// trees implements it; DifferOf gives one for those that do not.
//
// A tar stream is one of an OCI layer, uncompressed, with whiteouts.
type Differ interface {
	// Diff returns what id has and parent has not, and whiteouts for what parent has and id has not, as a tar stream;
	// parent is "" for all that id shows. The same layers give the same bytes. The layer may be in use meanwhile; what is
	// changed at that moment may or may not be in the stream. The caller closes the stream; an error of reading says what
	// failed. o.Note is told of all that no stream can hold, in another goroutine, and not any more once the stream is closed.
	Diff(ctx context.Context, id, parent string, o *DiffOptions) (io.ReadCloser, error)

	// Changes lists what Diff would contain, parents before children.
	Changes(ctx context.Context, id, parent string) ([]tarlayer.Change, error)

	// ApplyDiff gives an image layer that was just created its content, relative to its parent. After an error the layer
	// is good for nothing but Remove. If the process dies meanwhile, the layer is as Create made it, or List does not name
	// it and Cleanup removes it.
	ApplyDiff(ctx context.Context, id string, r io.Reader, o *ApplyOptions) (tarlayer.ApplyResult, error)

	// DiffSize is the number of bytes of content in Diff's stream: the sizes of added and modified regular files.
	DiffSize(ctx context.Context, id, parent string) (int64, error)
}

// Planner is implemented by drivers whose mounts others can make: a containerd snapshotter returns a plan to the
// runtime instead of mounting.
type Planner interface {
	// Plan says how Get would mount the layer, without mounting it. The Target is empty.
	Plan(ctx context.Context, id string, o *GetOptions) (Mount, error)
}

// Mount is a mount to be made, as mount(8) takes it.
type Mount struct {
	Type    string   `json:"type"`
	Source  string   `json:"source"`
	Target  string   `json:"target,omitempty"`
	Options []string `json:"options,omitempty"`
}

// Info is one layer in a listing.
type Info struct {
	ID       string `json:"id"`
	Parent   string `json:"parent,omitempty"`
	Writable bool   `json:"writable"`
	// Damaged says why the layer is good for nothing but Remove, where the driver cannot read what it noted of it; the fields above
	// hold what is known then.
	Damaged string `json:"damaged,omitempty"`
}

// Pair is a label with its value.
type Pair struct {
	Label string `json:"label"`
	Value string `json:"value"`
}

// Usage is what a layer takes up on its backing file system.
type Usage struct {
	// Bytes is allocated space, not apparent size; Inodes counts a file with several names once.
	Bytes  int64 `json:"bytes"`
	Inodes int64 `json:"inodes"`
}

// Quota bounds a writable layer; zero fields do not. Files of the image count from when they are copied up.
type Quota struct {
	Bytes  int64 `json:"bytes,omitempty"`
	Inodes int64 `json:"inodes,omitempty"`
}

// IsZero says whether nothing is bounded.
func (q Quota) IsZero() bool { return q == Quota{} }

// CreateOptions are options of one layer; nil stands for none.
type CreateOptions struct {
	// MountLabel is the SELinux context that the layer is always mounted with; empty for none.
	MountLabel string
	// Quota bounds a writable layer. It is refused for an image layer.
	Quota Quota
	// Options are the driver's own, by name, as on the command line (--opt). Unknown ones are refused with ErrInvalid.
	Options map[string]string
}

// GetOptions are options of one mount; nil stands for none. They count for the Get that mounts; a later one whose
// options differ is refused with ErrInUse.
type GetOptions struct {
	MountLabel string
	// ReadOnly mounts a writable layer so that nothing can be written.
	ReadOnly bool
	// Any takes the mount that is there, whatever its options; the others count only if there is none. It is for those who
	// merely read.
	Any bool
	// Alone refuses, with ErrInUse, to begin a mount beside one that somebody else made of the same writable layer: two servers do
	// not see at once what the other one writes. Drivers whose mounts the kernel serves need not look.
	Alone bool
}

// DiffOptions are options of one difference; nil stands for none.
type DiffOptions = tarlayer.WriteOptions

// ApplyOptions are options of one unpacking; nil stands for none.
type ApplyOptions struct {
	// Limits bound what a stream may make; zero fields stand for tarlayer's defaults.
	Limits tarlayer.Limits
	// Progress is called now and then with the bytes of the stream consumed so far, by one goroutine at a time, and not
	// any more once ApplyDiff has returned. It may be nil.
	Progress func(bytes int64)
	// Note is told of each thing that was left out, and why, in the goroutine that unpacks. It may be nil.
	Note func(path, reason string)
	// KeepTrusted applies trusted attributes that are not an overlay's, too.
	KeepTrusted bool
	// AcceptUnterminated accepts a stream without the end mark of a tar archive, which some tools do not write. It is for
	// callers that compare the stream's digest afterwards: nobody else could tell that the end is missing.
	AcceptUnterminated bool
	// Below, when not nil, says that the layers of an image are unpacked side by side, and that layers above this one may be
	// there already, of which none is used yet: it returns nil when all layers below are complete, or an error if that will
	// not come to pass. A driver whose ParallelApply is true calls it before it looks at them, from the goroutine that
	// unpacks, which it may keep waiting; others need the layers below complete before ApplyDiff, and ignore it.
	Below func(ctx context.Context) error
}
