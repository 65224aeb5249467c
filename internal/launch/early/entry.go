//go:build amd64 || arm64

package early

// Entry is where a program starts that is linked so. It is not to be called.
func Entry()
