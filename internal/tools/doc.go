// Package tools is a module of its own that pins the versions of gofumpt, staticcheck and golangci-lint, so that their
// dependencies stay out of plyfs's. It holds no code; `make lint` runs the tools with
// `go tool -modfile=internal/tools/go.mod`.
package tools
