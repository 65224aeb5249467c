package mountopt

import "strings"

// String returns o as an option string that Parse reads as o again: options at their defaults are left out, words that
// have no effect are gone, unknown ones come last.
func (o Options) String() string {
	var words []string
	if len(o.LowerDirs) > 0 {
		dirs := make([]string, len(o.LowerDirs))
		for i, d := range o.LowerDirs {
			dirs[i] = escape(d, ":")
		}
		words = append(words, "lowerdir="+strings.Join(dirs, ":"))
	}
	for _, s := range table() {
		if s.words == nil {
			continue
		}
		for _, w := range s.words(&o) {
			words = append(words, w.String())
		}
	}
	for _, w := range o.Unknown {
		words = append(words, w.String())
	}
	return strings.Join(words, ",")
}
