// Package doctor examines what plyfs and the container engines need of a machine, for the user who asks: what works, what
// does not, and what to do about it.
//
// A check is a function that looks at a System and returns findings. It decides nothing by version numbers or
// permissions that it can try instead: trials run in child processes, in namespaces of their own, and end with them.
// System is an interface, so that tests show the checks machines that are broken in every way; Host is the real one.
//
// Run runs all checks side by side, each with a time limit. A check may be given up while it is stuck in the kernel (a
// mount whose server hangs): what can get stuck runs in a child, which is killed and not waited for. Nothing lasting is
// changed: scratch directories are removed, mounts are in namespaces that end with their child. The one exception is a
// mount by fusermount3, which can only be made where the user is; it is taken away by whoever outlives the other, trial
// or Host.
//
// The package never repairs anything, and talks to no daemon. It has no locks; a System may be used by any number of
// goroutines.
package doctor
