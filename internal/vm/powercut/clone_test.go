//go:build !vm

package powercut

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// clone makes to share all blocks of from, as they are at one moment.
func clone(t *testing.T, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		t.Fatalf("clone %s: %v", from, err)
	}
}

func loads() []load { return []load{mergedLoad(), storeLoad(), indexLoad()} }

// cut is a disk as it was at one moment.
type cut struct {
	image    string
	promised int // so many steps were promised by then
}

// makeCuts runs a load on a disk of its own and clones that at the given numbers of promises. place is called with the disk's
// root and returns the directory for the load.
func makeCuts(t *testing.T, fs fileSystem, l load, place func(root string) string, at ...int) []cut {
	t.Helper()
	host := filepath.Join(testenv.Scratch(t), "host")
	run(t, "truncate", "-s", "2G", host)
	run(t, "mkfs.xfs", "-q", "-m", "reflink=1", host)
	images := mountAt(t, "xfs", "loop", host)
	disk := filepath.Join(images, "disk")
	run(t, "truncate", "-s", strconv.Itoa(diskSize), disk)
	run(t, fs.mkfs[0], append(fs.mkfs[1:], disk)...)
	dir := place(mountAt(t, fs.name, "loop", disk))
	var made []cut
	cutAt := func(i int) {
		c := cut{filepath.Join(images, dirOf(i)), i + 1}
		clone(t, disk, c.image)
		made = append(made, c)
	}
	// Every second of them falls into the step after the promise.
	startLoad(t, l, dir, func(i int) {
		if k := slices.Index(at, i+1); k >= 0 && k%2 == 0 {
			cutAt(i)
		}
	}, func(i int) {
		if k := slices.Index(at, i+1); k >= 0 && k%2 == 1 {
			cutAt(i)
		}
	})
	return made
}

// mergedOn makes layers on a disk and mounts them, with further options, for a load.
func mergedOn(t *testing.T, lower, options string) func(root string) string {
	return func(root string) string {
		s := layersOn(lower, root)
		s.extra = options
		s.make(t)
		merged := testenv.Scratch(t)
		t.Cleanup(s.mount(t, merged))
		return merged
	}
}

// TestClones cuts the power at moments of a running load, without any other machine: the disk under test is a file on XFS, and
// a clone of it holds every write that was done until then, and none of those that came later.
func TestClones(t *testing.T) {
	lower := filepath.Join(testenv.Scratch(t), "lower")
	writeLower(t, lower)
	for _, fs := range fileSystems() {
		t.Run(fs.name, func(t *testing.T) {
			cuts := makeCuts(t, fs, mergedLoad(), mergedOn(t, lower, ""), 10, 1, 11, 9, 38, 18, 25, 51, 60)
			newBoot(t)
			for i, c := range cuts {
				r := recoveries()[i/2%2]
				t.Run(fmt.Sprintf("%d-promised-%s", c.promised, r), func(t *testing.T) {
					layersOn(lower, mountAt(t, fs.name, "loop,"+fs.again, c.image)).checkCut(t, r, c.promised)
				})
			}
		})
	}
}

// TestClonesTell: a server that ignores fsync breaks promises, and a cut shows it.
func TestClonesTell(t *testing.T) {
	lower := filepath.Join(testenv.Scratch(t), "lower")
	writeLower(t, lower)
	fs := fileSystems()[0]
	cuts := makeCuts(t, fs, mergedLoad(), mergedOn(t, lower, ",fsync=0"), steps)
	newBoot(t)
	merged := testenv.Scratch(t)
	defer layersOn(lower, mountAt(t, fs.name, "loop,"+fs.again, cuts[0].image)).mount(t, merged)()
	states, err := observe(merged)
	if err != nil {
		t.Fatal(err)
	}
	if wrong := judge(states, steps); len(wrong) == 0 {
		t.Error("nothing was synced, and every promise holds")
	}
}

// TestStore cuts the power while layers come into a layer store, get holders, and go.
func TestStore(t *testing.T) {
	for _, fs := range fileSystems() {
		t.Run(fs.name, func(t *testing.T) {
			place := func(root string) string { return filepath.Join(root, "store") }
			for _, c := range makeCuts(t, fs, storeLoad(), place, 1, 6, 9, storeSteps) {
				t.Run(fmt.Sprintf("%d-promised", c.promised), func(t *testing.T) {
					checkStore(t, place(mountAt(t, fs.name, "loop,"+fs.again, c.image)), c.promised)
				})
			}
		})
	}
}

// TestIndex cuts the power while indexes of lowers are built.
func TestIndex(t *testing.T) {
	stacks := testenv.Scratch(t)
	t.Setenv(stacksEnv, stacks)
	makeStacks(t, stacks)
	for _, fs := range fileSystems() {
		t.Run(fs.name, func(t *testing.T) {
			place := func(root string) string { return filepath.Join(root, "index") }
			for _, c := range makeCuts(t, fs, indexLoad(), place, 1, 2, indexSteps) {
				t.Run(fmt.Sprintf("%d-promised", c.promised), func(t *testing.T) {
					checkIndexes(t, stacks, place(mountAt(t, fs.name, "loop,"+fs.again, c.image)))
				})
			}
		})
	}
}
