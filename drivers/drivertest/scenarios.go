package drivertest

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// scenario is a story of layers: what each does to the one below, in a directory of its own. All scenarios are layers
// of one stack.
type scenario struct {
	name   string
	layers [][]step
}

// scenarios are all stories; those from containerd's snapshot suite are named as there.
func scenarios() []scenario {
	return slices.Concat(replaceScenarios(), removeScenarios(), renameScenarios(), linkScenarios(), attributeScenarios(),
		contentScenarios(), specialScenarios(), nameScenarios())
}

func replaceScenarios() []scenario {
	return []scenario{
		{"file-to-dir", [][]step{
			{file("x", "file", 0o644)},
			{remove("x"), dir("x", 0o755), file("x/in", "1", 0o644)},
			{remove("x"), file("x", "file again", 0o600)},
		}},
		{"dir-to-symlink", [][]step{
			{dir("d", 0o755), file("d/a", "a", 0o644), dir("e", 0o755), file("e/b", "b", 0o644)},
			{remove("d"), symlink("e", "d")},
			{remove("d"), dir("d", 0o700), file("d/c", "c", 0o644)},
		}},
		{"symlink-target", [][]step{
			{symlink("one", "s"), symlink("/etc/passwd", "abs"), symlink(strings.Repeat("long/", 200), "long")},
			{remove("s"), symlink("two", "s")},
			{remove("s", "abs"), file("s", "file", 0o644)},
		}},
		{"file-over-file", [][]step{
			{file("f", "one", 0o644)},
			{file("f.new", "two", 0o600), rename("f.new", "f")},
			{file("f", "", 0o644)},
		}},
		{"dir-recreated", [][]step{
			{dir("d/sub", 0o755), file("d/old", "old", 0o644), file("d/sub/old", "old", 0o644)},
			{remove("d"), dir("d", 0o755), file("d/new", "new", 0o644)},
			{file("d/old", "back", 0o644)},
		}},
		{"dir-recreated-empty", [][]step{
			{dir("d/sub", 0o755), file("d/old", "old", 0o644)},
			{remove("d"), dir("d", 0o755)},
			{dir("d/sub", 0o755)},
		}},
		{"fifo-to-file", [][]step{
			{mknod("p", unix.S_IFIFO|0o644, 0)},
			{remove("p"), file("p", "file", 0o644)},
			{remove("p"), symlink("nowhere", "p")},
		}},
	}
}

func removeScenarios() []scenario {
	return []scenario{
		{"remove-file", [][]step{
			{file("a", "a", 0o644), file("b", "b", 0o644)},
			{remove("a")},
			{file("c", "c", 0o644), absent("a"), holds("b", "b")},
		}},
		{"remove-and-recreate", [][]step{
			{file("f", "one", 0o644)},
			{remove("f")},
			{file("f", "three", 0o644)},
			{remove("f"), file("f", "four!", 0o644)},
		}},
		{"delete-dir", [][]step{
			{dir("foo", 0o755), dir("foo/bar", 0o755), file("foo/bar/f", "f", 0o644), dir("other", 0o755)},
			{remove("foo/bar")},
			{remove("foo")},
			{dir("foo", 0o755)},
		}},
		{"delete-many", [][]step{
			{dir("d", 0o755), many("d", 40)},
			{remove("d/f0000", "d/f0010", "d/f0039")},
			{remove("d")},
		}},
		{"made-and-removed", [][]step{
			{dir("d", 0o755)},
			{file("d/f", "f", 0o644), remove("d/f"), dir("d/e", 0o755), remove("d/e")},
			{file("g", "g", 0o644), rename("g", "d/g"), remove("d/g")},
		}},
		{"unlink-while-open", [][]step{
			{file("f", "one", 0o644), file("g", "one", 0o644)},
			{whileOpen("f", "two", remove("f"))},
			{absent("f"), whileOpen("g", "two", remove("g"), file("g", "other", 0o644)), holds("g", "other")},
		}},
		{"opaque-below-opaque", [][]step{
			{dir("d/e", 0o755), file("d/e/1", "1", 0o644)},
			{remove("d"), dir("d/e", 0o755), file("d/e/2", "2", 0o644)},
			{remove("d/e"), dir("d/e", 0o755), file("d/e/3", "3", 0o644)},
			{remove("d"), dir("d", 0o755), file("d/4", "4", 0o644)},
		}},
	}
}

func renameScenarios() []scenario {
	return []scenario{
		{"rename-file", [][]step{
			{file("foo1", "foo", 0o644), dir("d", 0o755)},
			{rename("foo1", "foo2")},
			{rename("foo2", "d/foo3")},
		}},
		{"rename-dir", [][]step{
			{dir("dir1/sub", 0o700), file("dir1/f", "f", 0o644), file("dir1/sub/g", "g", 0o644), dir("to", 0o755)},
			{rename("dir1", "dir2")},
			{rename("dir2", "to/dir3"), file("to/dir3/h", "h", 0o644)},
			{rename("to/dir3/sub", "sub"), dir("to/dir3/sub", 0o755)},
		}},
		{"rename-new-dir", [][]step{
			{dir("d", 0o755), file("d/f", "f", 0o644)},
			{dir("new", 0o755), file("new/f", "f2", 0o644), rename("new", "renamed")},
			{rename("renamed", "d/renamed")},
		}},
		{"rename-over", [][]step{
			{file("a", "a", 0o644), file("b", "bb", 0o644), file("c", "ccc", 0o644)},
			{rename("a", "b")},
			{rename("b", "c"), file("b", "new b", 0o644)},
		}},
		{"swap", [][]step{
			{file("a", "aaa", 0o644), file("b", "bbb", 0o600)},
			{rename("a", "t"), rename("b", "a"), rename("t", "b")},
			{holds("a", "bbb"), holds("b", "aaa")},
		}},
	}
}

func linkScenarios() []scenario {
	return []scenario{
		{"hardlink-new", [][]step{
			{file("a", "a", 0o644), link("a", "b"), dir("d", 0o755), link("a", "d/c")},
			{file("x", "x", 0o644), link("x", "y")},
		}},
		{"hardlink-across-layers", [][]step{
			{file("a", "a", 0o644)},
			{link("a", "b")},
			{dir("d", 0o755), link("b", "d/c")},
		}},
		{"hardlink-write-all", [][]step{
			{file("a", "a", 0o644), link("a", "b")},
			// What is written replaces both names: their being one file is another case.
			{remove("b"), appendTo("a", "+1"), link("a", "b")},
		}},
		{"hardlink-copy-up", [][]step{
			{file("a", "a", 0o644), link("a", "b"), link("a", "c")},
			{appendTo("a", "+1"), holds("b", "a+1")},
			{chmod("c", 0o600)},
		}},
		{"hardlink-remove-one", [][]step{
			{file("a", "a", 0o644), link("a", "b")},
			{remove("a")},
			{remove("b")},
		}},
		{"hardlink-symlink", [][]step{
			{symlink("t", "s"), link("s", "s2")},
			{file("f", "f", 0o644)},
		}},
	}
}

func attributeScenarios() []scenario {
	list := []scenario{
		{"chown", [][]step{
			{file("foo", "foo", 0o644), dir("d", 0o755), symlink("foo", "s")},
			{chown("foo", 1, 1), chown("d", 2, 3), chown("s", 4, 5)},
			{chown("foo", 0, 0)},
		}},
		{"chmod", [][]step{
			{file("f", "f", 0o644), dir("d/e", 0o755), file("d/f", "f", 0o644)},
			{chmod("f", 0o4755), chmod("d", 0o1777)},
			{chmod("d", 0o2750), chmod("f", 0), chmod("d/f", 0o600)},
		}},
		{"directory-permission", [][]step{
			{dir("dir1", 0o700), dir("dir2", 0o755), dir("dir3", 0o1777), file("dir1/f", "f", 0o644), chown("dir1", 9, 9)},
			{file("dir1/g", "g", 0o644)},
			{file("dir3/g", "g", 0o644), file("dir2/g", "g", 0o644)},
		}},
		{"times", [][]step{
			{file("f", "f", 0o644), dir("d", 0o755), symlink("x", "s")},
			{touch("f")},
			{touch("d"), touch("s")},
		}},
		{"xattr", [][]step{
			{file("f", "f", 0o644), dir("d", 0o755), xattr("f", "user.one", "1"), xattr("d", "user.dir", "\x00\xff")},
			{xattr("f", "user.two", strings.Repeat("v", 2000)), touch("f")},
			{noXattr("f", "user.one"), xattr("f", "user.two", ""), touch("f")},
		}},
		{"capability", [][]step{
			{file("bin", "#!", 0o755), file("keeps", "#!", 0o755), netBind("keeps")},
			{netBind("bin")},
			{chmod("keeps", 0o700)},
		}},
		{"acl", [][]step{
			{file("f", "f", 0o644), dir("d", 0o755), acl("f", "system.posix_acl_access"), acl("d", "system.posix_acl_default")},
			{file("d/inherits", "i", 0o644), dir("d/sub", 0o755)},
			{touch("f")},
		}},
	}
	if !testenv.InUserNamespace() {
		list = append(list, scenario{"xattr-trusted", [][]step{
			{file("f", "f", 0o644), xattr("f", "user.a", "b")},
			{touch("f"), xattr("f", "user.c", "d")},
		}})
	}
	return list
}

// netBind gives a program the capability CAP_NET_BIND_SERVICE, effective and permitted.
func netBind(p string) step {
	return xattr(p, "security.capability",
		"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
}

// acl gives p an ACL in which user 7 may read and write.
func acl(p, name string) step {
	entry := func(tag, perm byte, id uint32) string {
		return string([]byte{tag, 0, perm, 0, byte(id), byte(id >> 8), byte(id >> 16), byte(id >> 24)})
	}
	const none = 1<<32 - 1
	return xattr(p, name, "\x02\x00\x00\x00"+
		entry(1, 6, none)+entry(2, 6, 7)+entry(4, 4, none)+entry(0x10, 6, none)+entry(0x20, 4, none))
}

func contentScenarios() []scenario {
	return []scenario{
		{"append", [][]step{
			{file("f", "one\n", 0o644), file("untouched", "u", 0o644)},
			{appendTo("f", "two\n")},
			{appendTo("f", "three\n"), holds("f", "one\ntwo\nthree\n")},
		}},
		{"same-content", [][]step{
			{file("f", "same", 0o644), file("g", "same", 0o644)},
			{file("f", "same", 0o644)},
			{remove("g"), file("g", "same", 0o644)},
		}},
		{"transitivity", [][]step{
			{dir("d", 0o755), file("d/1", "1", 0o644)},
			{file("d/2", "2", 0o644)},
			{file("d/3", "3", 0o644), remove("d/1")},
			{appendTo("d/2", "2"), holds("d/3", "3")},
		}},
		{"sparse", [][]step{
			{sparse("s", 8<<20)},
			{writeAt("s", 1<<20, "data")},
			{sparse("s", 1<<20)},
		}},
		{"large", [][]step{
			{file("f", strings.Repeat("0123456789abcdef", 1<<14), 0o644)},
			{writeAt("f", 100_000, "changed")},
			{file("f", "short", 0o644)},
		}},
		{"empty-layer", [][]step{
			{file("f", "f", 0o644)},
			{},
			{file("g", "g", 0o644)},
		}},
	}
}

func specialScenarios() []scenario {
	list := []scenario{
		{"fifo", [][]step{
			{mknod("p", unix.S_IFIFO|0o640, 0)},
			{mknod("q", unix.S_IFIFO|0o644, 0), chown("p", 3, 3)},
			{remove("p")},
		}},
	}
	if !testenv.InUserNamespace() {
		list = append(list, scenario{"device", [][]step{
			{mknod("null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3)), mknod("disk", unix.S_IFBLK|0o660, unix.Mkdev(7, 300))},
			{chmod("null", 0o600), remove("disk")},
			{mknod("disk", unix.S_IFCHR|0o600, unix.Mkdev(300, 70000))},
		}})
	}
	return list
}

func nameScenarios() []scenario {
	odd := "new\nline \t\x01 \xff\xfe not UTF-8 \\ \" '"
	longest := strings.Repeat("é", 127) + "x"
	return []scenario{
		{"names", [][]step{
			{
				file("ünïcödé 名前", "1", 0o644), file(odd, "2", 0o644), file(longest, "3", 0o644),
				dir("- -", 0o755), file("...", "4", 0o644),
			},
			{appendTo(odd, "2"), remove(longest), file("- -/x", "x", 0o644), file("a:b,c=d", "5", 0o644)},
			{remove(odd, "- -"), file(longest, "33", 0o644), rename("...", "....")},
		}},
		{"name-order", [][]step{
			{dir("a", 0o755), file("a/x", "x", 0o644), file("a-b", "1", 0o644), file("a.b", "2", 0o644), dir("a0", 0o755)},
			{file("a/y", "y", 0o644), file("a.c", "3", 0o644)},
			{remove("a"), remove("a0"), file("a", "a", 0o644)},
		}},
		{"deep", [][]step{
			{dir("d", 0o755), deep("d")},
			{file("f", "f", 0o644)},
			{remove("d/" + strings.Repeat("n", 200) + "/" + strings.Repeat("n", 200))},
		}},
	}
}
