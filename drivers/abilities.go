package drivers

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
