package bench

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// gitWorkloads run git status in a repository of 5,000 files in a lower layer, of which ten were changed and beside
// which ten are untracked.
func gitWorkloads() []Workload {
	return []Workload{
		{
			Name: "git-status-first", Doc: "git status over 5,000 files in a fresh mount", Fixture: repoFixture(),
			Run: func(ctx context.Context, e *Env) error { return measureGitStatus(ctx, e, 0) },
		},
		{
			Name: "git-status-warm", Doc: "git status over 5,000 files, again", Fixture: repoFixture(),
			Run: func(ctx context.Context, e *Env) error { return measureGitStatus(ctx, e, 2) },
		},
	}
}

func measureGitStatus(ctx context.Context, e *Env, before int) error {
	const changed = 10
	content := make([]byte, e.Tree.Size/2)
	for i := range changed {
		name := e.Tree.path(i * (e.Tree.Files / changed))
		if err := unix.Unlinkat(e.Root, name, 0); err != nil {
			return opError("unlink", name, err)
		}
		if err := writeFile(e.Root, name, content, 0o644); err != nil {
			return err
		}
		if err := writeFile(e.Root, fmt.Sprintf("untracked%d", i), content, 0o644); err != nil {
			return err
		}
	}
	var out []byte
	err := e.again(before, func() (err error) {
		cmd := gitCommand(ctx, e.Dir, "status", "--porcelain")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if out, err = cmd.Output(); err != nil {
			return fmt.Errorf("git status: %w: %s", err, stderr.Bytes())
		}
		return nil
	})
	if err != nil {
		return err
	}
	e.Ops(e.Tree.Files)
	if err := expect("changed files", strings.Count(string(out), " M "), changed); err != nil {
		return err
	}
	return expect("untracked files", strings.Count(string(out), "?? "), changed)
}
