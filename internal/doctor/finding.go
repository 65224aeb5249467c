package doctor

import "fmt"

// Status is how much a finding matters. Its strings are part of the JSON output.
type Status string

// The statuses, the least first.
const (
	// OK: it works.
	OK Status = "ok"
	// Note: worth knowing, and nothing has to be done.
	Note Status = "note"
	// Warning: plyfs works, but something that is commonly used beside it, or that will matter later, does not.
	Warning Status = "warning"
	// Problem: something that this user needs for containers on plyfs does not work.
	Problem Status = "problem"
)

// Step is one step of a way out.
type Step struct {
	// Do says what to do, in a sentence; it may be empty if Command says it all.
	Do string `json:"do,omitempty"`
	// Command can be typed as it is.
	Command string `json:"command,omitempty"`
	// Root says that the command needs root of the machine; else it is for the user who asks.
	Root bool `json:"root,omitempty"`
}

// Finding is what one check found. ID is constant, and the same on all machines; where a check looks at several
// objects, it has a finding for each, and Object tells them apart.
type Finding struct {
	ID     string `json:"id"`
	Group  string `json:"group"`
	Object string `json:"object,omitempty"`
	// Title is what was examined, Detail what was seen.
	Title  string `json:"title"`
	Status Status `json:"status"`
	Detail string `json:"detail"`
	WayOut []Step `json:"way_out,omitempty"`
}

// Report is the outcome of all checks. Fields are only ever added to its JSON form.
type Report struct {
	// Subject says who asked, and where.
	Subject  Subject        `json:"subject"`
	Count    map[Status]int `json:"count"`
	Findings []Finding      `json:"findings"`
}

// Subject is the user and the machine that a report is about.
type Subject struct {
	UID  int    `json:"uid"`
	User string `json:"user,omitempty"`
	// UserNamespace says that the process is in a user namespace other than the machine's.
	UserNamespace bool   `json:"user_namespace"`
	Kernel        string `json:"kernel"`
	System        string `json:"system,omitempty"`
	// Container is the container runtime, or the kind of container, that the process is in; empty for none.
	Container string `json:"container,omitempty"`
}

// Problems is the number of findings that are problems.
func (r *Report) Problems() int { return r.Count[Problem] }

// found starts a finding with a detail; the check's id, group and title are added by Run where they are empty.
func found(s Status, format string, args ...any) Finding {
	return Finding{Status: s, Detail: fmt.Sprintf(format, args...)}
}

// with adds steps of a way out.
func (f Finding) with(steps ...Step) Finding {
	f.WayOut = append(f.WayOut, steps...)
	return f
}

// of names the object that the finding is about.
func (f Finding) of(object string) Finding {
	f.Object = object
	return f
}

// asRoot is a command for root of the machine, asUser one for the user who asks, say what has no command.
func asRoot(format string, args ...any) Step {
	return Step{Command: fmt.Sprintf(format, args...), Root: true}
}

func asUser(format string, args ...any) Step { return Step{Command: fmt.Sprintf(format, args...)} }

func say(format string, args ...any) Step { return Step{Do: fmt.Sprintf(format, args...)} }

// because says what a command is for.
func (s Step) because(why string) Step {
	s.Do = why
	return s
}
