package mountopt

import (
	"slices"

	"plyfs/internal/typo"
)

// Hint says what was probably meant by a word of Options.Unknown, in a form that follows "unknown option X"; empty if
// nothing comes near.
func Hint(w Word) string {
	specs := lookup()
	if _, ok := specs[w.Key]; ok {
		// The key is right, so the form was wrong: only words without a value leave Parse this way.
		return w.Key + " takes no value"
	}
	keys := make([]string, 0, len(specs))
	for k := range specs {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	best := typo.Nearest(w.Key, keys)
	if best == "" {
		return ""
	}
	return "did you mean " + best + "?"
}
