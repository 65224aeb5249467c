// Package mountopt turns the -o grammar of a union mount into typed Options and back, and splits the command lines of
// the mount programs that carry it. It is pure: it opens no file, reads no environment and holds no state, so that every
// quirk of its callers can be held by a table.
//
// The grammar is the union of three: the options of fuse-overlayfs, those of the kernel's overlayfs, and the generic ones
// of mount(8), fuse(8) and fstab(5), with a few of plyfs's own. A string of options is split at commas; empty elements
// (leading, doubled and trailing commas) mean nothing, a value may be quoted to hold commas (context="a,b"), and a
// backslash takes the special meaning from the character behind it (a colon or a comma in a layer's path). Where one
// option is given several times the last one counts, except that lowerdir+ adds a layer.
//
// What is done about words that nobody knows is the caller's decision: Parse collects them in Options.Unknown, Hint says
// what may have been meant. A known option with a bad value is an *Error at once, which names the option, the value and
// the way out.
package mountopt
