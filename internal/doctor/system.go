package doctor

import (
	"context"
	"errors"
	"io/fs"
)

// System is a machine as the checks see it, for one user. Paths are absolute. Errors wrap syscall.Errno, and
// fs.ErrNotExist and fs.ErrPermission where they say that. Methods with a context block until it ends at most.
type System interface {
	User() User
	// Getenv returns "" for a variable that is not set.
	Getenv(name string) string
	// ReadFile returns at most the first MiB of a file.
	ReadFile(path string) ([]byte, error)
	// ReadDir returns the names in a directory, sorted.
	ReadDir(path string) ([]string, error)
	// Stat follows symbolic links. It is not for mounts that may hang.
	Stat(path string) (Stat, error)
	Readlink(path string) (string, error)
	// Resolve returns the path without symbolic links.
	Resolve(path string) (string, error)
	Getxattr(path, name string) ([]byte, error)
	Statfs(path string) (Space, error)
	// Writable says whether the user may make files in a directory, or open a file for writing.
	Writable(path string) bool
	// OpenDevice opens a device for reading and writing, and closes it.
	OpenDevice(path string) error
	// OpenFiles returns the limits of open files, the soft and the hard one.
	OpenFiles() (soft, hard uint64)
	// IOUring tries to make an io_uring.
	IOUring() error
	// LookPath finds a program in the directories of a PATH; an empty one stands for that of this process.
	LookPath(name, path string) (string, error)
	// Output runs a program and returns its standard output. The error contains what it said on standard error.
	Output(ctx context.Context, name string, args ...string) (string, error)
	// Self runs this program, plyfs, likewise.
	Self(ctx context.Context, args ...string) (string, error)
	// Try runs a trial in a child process. The results are complete only if err is nil; those so far are returned with it.
	Try(ctx context.Context, t Trial) ([]Result, error)
}

// User is who asks.
type User struct {
	// UID is the effective user id; Name may be empty.
	UID  int
	Name string
	// Home is the home directory, "" if there is none.
	Home string
}

// Stat is what the checks want to know of a file.
type Stat struct {
	Mode         fs.FileMode
	UID, GID     int
	Major, Minor uint32 // of a device
}

// Space is the room on a file system.
type Space struct {
	// Free and Size are in bytes, FreeInodes and Inodes are 0 where the file system does not count them.
	Free, Size         uint64
	FreeInodes, Inodes uint64
}

// Namespace is where a trial runs.
type Namespace string

const (
	// Here is in the namespaces of this process.
	Here Namespace = "here"
	// NewMounts is in a new mount and PID namespace, for which CAP_SYS_ADMIN is needed.
	NewMounts Namespace = "mounts"
	// NewUser is in a new user, mount and PID namespace, in which the user is root and there are no other users.
	NewUser Namespace = "user"
)

// Trial is something to be tried in a child process.
type Trial struct {
	// Name is that of a trial; see trials.
	Name string
	In   Namespace
	// Args are the trial's own.
	Args []string
}

// Result is the outcome of one step of a trial.
type Result struct {
	Step string `json:"step"`
	// Error is empty for success; Errno is its number, 0 if it has none.
	Error string `json:"error,omitempty"`
	Errno int    `json:"errno,omitempty"`
	// Value is what a step found out, if it is for that.
	Value string `json:"value,omitempty"`
}

// ErrNamespace means that the namespaces of a trial could not be made.
var ErrNamespace = errors.New("the namespace cannot be made")

// result returns the result of a step; ok is false if the trial did not come to it.
func result(all []Result, step string) (r Result, ok bool) {
	for _, r := range all {
		if r.Step == step {
			return r, true
		}
	}
	return Result{}, false
}

// failed returns the first step that failed.
func failed(all []Result) (Result, bool) {
	for _, r := range all {
		if r.Error != "" {
			return r, true
		}
	}
	return Result{}, false
}
