// Package tools is a module of its own that pins the version of nfpm, which builds the packages, so that its dependencies stay out of
// plyfs's and of those of the linters. It holds no code; `make deb` and `make rpm` run
// `go tool -modfile=internal/packaging/tools/go.mod nfpm`.
package tools
