// Package typo guesses what was meant by a word that nobody knows.
package typo

import "strings"

// longest is more than the length of any word that is known, with its misspellings, in bytes.
const longest = 32

// Nearest returns the one of known that word is most like, the first of those that are equally like it; "" if none is like it.
// A third of the letters may be wrong, but one always. Capital letters, and _ for -, count as no mistake where known has none.
func Nearest(word string, known []string) string {
	if len(word) > longest {
		return ""
	}
	best, distance := "", 1+max(1, len(word)/3)
	word = strings.ToLower(word)
	dashed := strings.ReplaceAll(word, "_", "-")
	for _, k := range known {
		// As many mistakes as there are letters make any word of any other.
		if d := min(editDistance(word, k), editDistance(dashed, k)); d < distance && d < len(k) {
			best, distance = k, d
		}
	}
	return best
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
