package exerciser

import (
	"errors"
	"slices"

	"plyfs/fs/union/uniontest"
)

// Shrink returns a part of ops that still fails on a new tree, as short as it finds: first the shortest failing prefix,
// then without the operations that it can do without. ops must fail; if they do not on a second run, it returns nil.
// Every attempt opens a tree with open and closes it.
func Shrink(ops []Op, open func() (uniontest.Tree, error)) []Op {
	fails := func(part []Op) (int, bool) {
		t, err := open()
		if err != nil {
			return 0, false
		}
		var f *Failure
		err = Run(t, part)
		cerr := t.Close()
		if errors.As(err, &f) {
			return f.Index, true
		}
		return len(part), cerr != nil
	}
	at, failed := fails(ops)
	if !failed {
		return nil
	}
	ops = slices.Clone(ops[:min(at+1, len(ops))])
	// A difference may show long after the operation that made it: the check in the end finds it earlier.
	low, high := 0, len(ops)
	for low < high {
		mid := (low + high) / 2
		if _, bad := fails(ops[:mid]); bad {
			high = mid
		} else {
			low = mid + 1
		}
	}
	ops = ops[:high]
	for size := len(ops) / 2; size > 0; size /= 2 {
		for i := 0; i+size <= len(ops); {
			if rest := slices.Concat(ops[:i], ops[i+size:]); first(fails(rest)) {
				ops = rest
			} else {
				i += size
			}
		}
	}
	return ops
}

func first(_ int, bad bool) bool { return bad }
