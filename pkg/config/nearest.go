package config

import "strings"

// Nearest returns the word that a mistyped name was probably meant to be, or "" when none is near.
func Nearest(name string, words []string) string {
	name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	best, bestDistance := "", max(1, min(4, len(name)/3))+1
	for _, w := range words {
		if d := distance(name, strings.ToLower(w)); d < bestDistance {
			best, bestDistance = w, d
		}
	}
	return best
}

// distance counts the letters to insert, delete, replace or swap with their neighbour to turn a into b.
// Rows are kept instead of a table because names come from outside: memory is bounded by the shorter, known word.
func distance(a, b string) int {
	if len(a) > len(b)+8 {
		return len(a) // far anyway: do not spend time on a name of a megabyte
	}
	before := make([]int, len(b)+1) // the row before the previous one
	previous := make([]int, len(b)+1)
	for j := range previous {
		previous[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(previous[j]+1, row[j-1]+1, previous[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, previous = previous, row
	}
	return previous[len(b)]
}
