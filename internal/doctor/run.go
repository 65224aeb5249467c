package doctor

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Options say what is examined.
type Options struct {
	// Root is the directory of the layer store.
	Root string
	// IndexDir is where indexes of stacks are kept.
	IndexDir string
}

// The groups of checks, in the order in which they are shown.
const (
	groupFUSE      = "FUSE"
	groupNamespace = "user namespaces"
	groupSecurity  = "confinement"
	groupKernel    = "kernel"
	groupStore     = "storage"
	groupEngines   = "engines"
	groupLeft      = "left behind"
)

func groups() []string {
	return []string{groupFUSE, groupNamespace, groupSecurity, groupKernel, groupStore, groupEngines, groupLeft}
}

// check looks at one thing.
type check struct {
	id, group, title string
	run              func(ctx context.Context, m *machine) []Finding
}

// checks is the table of all checks, in the order in which their findings are shown.
func checks() []check {
	return slices.Concat(fuseChecks(), namespaceChecks(), securityChecks(), kernelChecks(), storeChecks(), engineChecks(),
		leftChecks())
}

// checkLimit is how long one check may take.
const checkLimit = 5 * time.Second

// Run runs all checks of a system side by side and returns what they found, in the order of groups and checks. It
// returns when the last one has finished, after some seconds at most.
func Run(ctx context.Context, s System, o Options) *Report {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	m := newMachine(ctx, s, o)
	list := checks()
	outcome := make([]chan []Finding, len(list))
	for i, c := range list {
		outcome[i] = make(chan []Finding, 1)
		go func() { outcome[i] <- c.run(ctx, m) }()
	}
	r := &Report{Count: map[Status]int{OK: 0, Note: 0, Warning: 0, Problem: 0}, Findings: []Finding{}}
	for i, c := range list {
		r.add(c, await(ctx, outcome[i]))
	}
	r.Subject = m.subject()
	order := groups()
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Compare(slices.Index(order, a.Group), slices.Index(order, b.Group))
	})
	return r
}

// await returns what a check found; for one that does not come to an end, that.
func await(ctx context.Context, outcome <-chan []Finding) []Finding {
	select {
	case f := <-outcome:
		return f
	case <-ctx.Done():
	}
	// The check is told of the end by the same context, and may be about to say what it has.
	select {
	case f := <-outcome:
		return f
	case <-time.After(3 * giveUp):
		return []Finding{found(Warning, "gave up after %s: something that it looks at does not answer", checkLimit).
			with(say("look for a hung file system (findings about mounts, dmesg) and try again"))}
	}
}

func (r *Report) add(c check, all []Finding) {
	for _, f := range all {
		f.ID = cmp.Or(f.ID, c.id)
		f.Group = cmp.Or(f.Group, c.group)
		f.Title = cmp.Or(f.Title, c.title)
		f.Detail = strings.Join(strings.Fields(f.Detail), " ")
		r.Count[f.Status]++
		r.Findings = append(r.Findings, f)
	}
}

// single makes a check of a function that does not wait and finds one thing; several one of a function that finds any
// number.
func single(f func(*machine) Finding) func(context.Context, *machine) []Finding {
	return func(_ context.Context, m *machine) []Finding { return one(f(m)) }
}

func several(f func(*machine) []Finding) func(context.Context, *machine) []Finding {
	return func(_ context.Context, m *machine) []Finding { return f(m) }
}

// one makes the list of a single finding.
func one(f Finding) []Finding { return []Finding{f} }

// count is n things in words.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
