// Package direct has the implementation for uniontest that calls the engine without any mount. It does what the kernel's
// path walk does before it asks a file system: it follows paths and symlinks, and it keeps handles; all else is the
// engine's answer.
package direct
