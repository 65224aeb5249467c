package drivers

import (
	"context"

	"plyfs/cow/tarlayer"
)

// ParallelApplier is implemented by drivers that stack directories: the layers of an image can be created one on top of the other
// first, and then be unpacked all at once, with ApplyOptions.Below.
type ParallelApplier interface {
	// ParallelApply says whether ApplyDiff works so here. It does not block.
	ParallelApply() bool
}

// ParentCopier is implemented by drivers in whose stores a new layer takes as much space as its parent.
type ParentCopier interface {
	// CopiesParent says whether that is so here. It does not block for long.
	CopiesParent() bool
}

// Referrer is implemented by drivers whose mounts outlive the process that made them. It is for whoever takes over after a
// crash, and knows which references are wanted: the others are given back with Put.
type Referrer interface {
	// References is the number of references (Get without Put) to each layer that has any. It does not block; the caller owns
	// the map.
	References() map[string]int
}

// Unmasker is implemented by drivers whose mounts can't show all that a layer was unpacked with: to the kernel's overlayfs each 0:0
// device is a whiteout, so that such a device of a layer is kept as an empty file, and shown as one.
type Unmasker interface {
	// Unmask returns the tree of a layer in which such objects are what they were. It is for one goroutine, and reads the layer as it
	// is on disk until done is called, which has to be. Errors are those of Get.
	Unmask(ctx context.Context, id string) (tree tarlayer.Source, done func() error, err error)
}
