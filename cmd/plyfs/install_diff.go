package main

import (
	"fmt"
	"slices"
	"strings"
)

// diffContext is how many unchanged lines surround a change.
const diffContext = 3

// diffLine is a line of a difference: kept (' '), removed ('-') or added ('+').
type diffLine struct {
	mark byte
	text string
}

// unifiedDiff returns the difference of two texts in the unified form of diff(1), "" if they are the same.
func unifiedDiff(oldName, newName string, old, text []byte) string {
	all := diffLines(splitLines(old), splitLines(text))
	var b strings.Builder
	oldAt, newAt := 1, 1
	for i := 0; i < len(all); {
		first := nextChange(all, i)
		if first == len(all) {
			break
		}
		from := max(i, first-diffContext)
		to := hunkEnd(all, first)
		oldAt, newAt = advance(all[i:from], oldAt, newAt)
		if b.Len() == 0 {
			fmt.Fprintf(&b, "--- %s\n+++ %s\n", oldName, newName)
		}
		oldEnd, newEnd := advance(all[from:to], oldAt, newAt)
		fmt.Fprintf(&b, "@@ -%s +%s @@\n", span(oldAt, oldEnd-oldAt), span(newAt, newEnd-newAt))
		for _, l := range all[from:to] {
			b.WriteByte(l.mark)
			b.WriteString(l.text)
			if !strings.HasSuffix(l.text, "\n") {
				b.WriteString("\n\\ No newline at end of file\n")
			}
		}
		oldAt, newAt, i = oldEnd, newEnd, to
	}
	return b.String()
}

// splitLines returns lines with their breaks.
func splitLines(text []byte) []string {
	return slices.Collect(strings.Lines(string(text)))
}

func nextChange(all []diffLine, i int) int {
	for i < len(all) && all[i].mark == ' ' {
		i++
	}
	return i
}

// hunkEnd is where the hunk with the change at first ends: changes with few lines between them share one.
func hunkEnd(all []diffLine, first int) int {
	end := first
	for {
		for end < len(all) && all[end].mark != ' ' {
			end++
		}
		next := nextChange(all, end)
		if next == len(all) || next-end > 2*diffContext {
			return min(len(all), end+diffContext)
		}
		end = next
	}
}

func advance(part []diffLine, oldAt, newAt int) (int, int) {
	for _, l := range part {
		if l.mark != '+' {
			oldAt++
		}
		if l.mark != '-' {
			newAt++
		}
	}
	return oldAt, newAt
}

// span is a range of lines; an empty one begins after the line that it names.
func span(at, n int) string {
	if n == 0 {
		at--
	}
	if n == 1 {
		return fmt.Sprint(at)
	}
	return fmt.Sprintf("%d,%d", at, n)
}

// diffLines compares by the longest common subsequence, after what both begin and end with.
func diffLines(a, b []string) []diffLine {
	var head, tail []diffLine
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		head, a, b = append(head, diffLine{' ', a[0]}), a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		tail = append(tail, diffLine{' ', a[len(a)-1]})
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	all := append(head, middle(a, b)...)
	for i := len(tail) - 1; i >= 0; i-- {
		all = append(all, tail[i])
	}
	return all
}

// maxDiffCells bounds the table of middle; larger texts that differ that much are shown as replaced.
const maxDiffCells = 1 << 22

func middle(a, b []string) []diffLine {
	var all []diffLine
	if (len(a)+1)*(len(b)+1) <= maxDiffCells {
		// common[i][j] is the length of the longest common subsequence of a[i:] and b[j:].
		common := make([][]int32, len(a)+1)
		for i := range common {
			common[i] = make([]int32, len(b)+1)
		}
		for i := len(a) - 1; i >= 0; i-- {
			for j := len(b) - 1; j >= 0; j-- {
				if a[i] == b[j] {
					common[i][j] = common[i+1][j+1] + 1
				} else {
					common[i][j] = max(common[i+1][j], common[i][j+1])
				}
			}
		}
		for len(a) > 0 && len(b) > 0 {
			i, j := len(common)-1-len(a), len(common[0])-1-len(b)
			switch {
			case a[0] == b[0]:
				all, a, b = append(all, diffLine{' ', a[0]}), a[1:], b[1:]
			case common[i+1][j] >= common[i][j+1]:
				all, a = append(all, diffLine{'-', a[0]}), a[1:]
			default:
				all, b = append(all, diffLine{'+', b[0]}), b[1:]
			}
		}
	}
	for _, l := range a {
		all = append(all, diffLine{'-', l})
	}
	for _, l := range b {
		all = append(all, diffLine{'+', l})
	}
	return all
}
