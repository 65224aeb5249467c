package drivers

// ParallelApplier is implemented by drivers that unpack a layer without a look at the layers below it, such as those that stack
// directories: then the layers of an image can be created one on top of the other first, and be unpacked all at once.
type ParallelApplier interface {
	// ParallelApply says whether ApplyDiff works so here. It does not block.
	ParallelApply() bool
}

// ParentCopier is implemented by drivers in whose stores a new layer takes as much space as its parent.
type ParentCopier interface {
	// CopiesParent says whether that is so here. It does not block for long.
	CopiesParent() bool
}
