package mountopt

import (
	"slices"
	"strings"
)

// longestGuess is more than the length of any key with its misspellings.
const longestGuess = 32

// Hint says what was probably meant by a word of Options.Unknown, in a form that follows "unknown option X"; empty if
// nothing comes near.
func Hint(w Word) string {
	specs := lookup()
	if _, ok := specs[w.Key]; ok {
		// The key is right, so the form was wrong: only words without a value leave Parse this way.
		return w.Key + " takes no value"
	}
	if len(w.Key) > longestGuess {
		return ""
	}
	keys := make([]string, 0, len(specs))
	for k := range specs {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	// A third of the letters may be wrong, but one always.
	best, distance := "", 1+max(1, len(w.Key)/3)
	for _, k := range keys {
		if d := editDistance(strings.ToLower(w.Key), k); d < distance {
			best, distance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return "did you mean " + best + "?"
}

// editDistance counts the insertions, deletions, substitutions and swaps of neighbours that make a into b.
func editDistance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
