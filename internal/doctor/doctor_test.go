package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// broken is a machine with one defect, and what has to be said about it.
type broken struct {
	name   string
	root   bool // for root instead of a plain user
	defect func(*fake)
	id     string
	status Status
	detail string // a part of it
	wayOut string // a part of one step, empty for none
}

func allBroken() []broken {
	return slices.Concat(brokenFUSE(), brokenNamespaces(), brokenSecurity(), brokenKernel(), brokenStorage(),
		brokenEngines(), brokenLeft())
}

func (f *fake) contain(runtime string) {
	f.links["/proc/self/ns/pid"] = "pid:[4026532000]"
	switch runtime {
	case "podman":
		f.files["/run/.containerenv"] = "engine=\"podman-4.3.1\"\n"
	case "docker":
		f.files["/.dockerenv"] = ""
	case "kubernetes":
		f.env["KUBERNETES_SERVICE_HOST"] = "10.0.0.1"
	default:
		f.env["container"] = runtime
	}
}

// remount adds a mount.
func (f *fake) remount(target, fstype string, options ...string) {
	f.files["/proc/self/mountinfo"] += fmt.Sprintf("90 22 0:99 / %s %s - %s x rw\n", target,
		strings.Join(append([]string{"relatime"}, options...), ","), fstype)
}

func TestBrokenMachines(t *testing.T) {
	for _, b := range allBroken() {
		t.Run(b.name, func(t *testing.T) {
			f := healthyUser()
			if b.root {
				f = healthyRoot()
			}
			b.defect(f)
			r := Run(t.Context(), f, optionsOf(f))
			checkReport(t, r)
			for _, got := range r.Findings {
				if got.ID == b.id && got.Status == b.status && strings.Contains(got.Detail, b.detail) {
					if !shows(got.WayOut, b.wayOut) {
						t.Errorf("the way out is %+v, want %q in it", got.WayOut, b.wayOut)
					}
					return
				}
			}
			t.Errorf("no finding %s, %s with %q in:\n%s", b.id, b.status, b.detail, plain(t, r))
		})
	}
}

func shows(steps []Step, part string) bool {
	return part == "" || slices.ContainsFunc(steps, func(s Step) bool { return strings.Contains(s.Do+" "+s.Command, part) })
}

// checkReport checks what holds for every report.
func checkReport(t *testing.T, r *Report) {
	t.Helper()
	seen := make(map[string]bool)
	total := 0
	for _, f := range r.Findings {
		total++
		key := f.ID + " " + f.Object + " " + f.Detail
		switch {
		case seen[key]:
			t.Errorf("%s is there twice", key)
		case f.ID == "" || f.Title == "" || f.Detail == "" || !slices.Contains(groups(), f.Group):
			t.Errorf("incomplete: %+v", f)
		case (f.Status == Problem || f.Status == Warning) && len(f.WayOut) == 0:
			t.Errorf("%s, %s: %s: no way out", f.ID, f.Status, f.Detail)
		case strings.Contains(f.Detail, "%!"):
			t.Errorf("%s: bad format: %s", f.ID, f.Detail)
		}
		seen[key] = true
		for _, s := range f.WayOut {
			if s.Do+s.Command == "" || strings.Contains(s.Command, "\n") || strings.Contains(s.Do+s.Command, "%!") {
				t.Errorf("%s: bad step %+v", f.ID, s)
			}
		}
	}
	if sum := r.Count[OK] + r.Count[Note] + r.Count[Warning] + r.Count[Problem]; sum != total {
		t.Errorf("%d findings, counted %d", total, sum)
	}
}

func plain(t *testing.T, r *Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.WriteText(&b, Style{All: true}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestHealthyMachines(t *testing.T) {
	for name, f := range map[string]*fake{"user": healthyUser(), "root": healthyRoot()} {
		t.Run(name, func(t *testing.T) {
			r := Run(t.Context(), f, optionsOf(f))
			checkReport(t, r)
			if r.Count[OK] != len(r.Findings) {
				t.Errorf("all is well, and yet:\n%s", plain(t, r))
			}
			if s := r.Subject; s.Container != "" || s.UserNamespace || s.UID != f.user.UID || s.Kernel != "6.12.1-amd64" {
				t.Errorf("subject %+v", s)
			}
		})
	}
}

// A check that gets stuck is given up; one that has an answer after all is heard.
func TestStuckCheck(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	late := make(chan []Finding, 1)
	late <- one(found(OK, "late"))
	if all := await(ctx, late); len(all) != 1 || all[0].Detail != "late" {
		t.Errorf("a late answer: %+v", all)
	}
	if all := await(ctx, nil); len(all) != 1 || all[0].Status != Warning || !strings.Contains(all[0].Detail, "gave up") {
		t.Errorf("no answer: %+v", all)
	}
}

func TestJSON(t *testing.T) {
	f := healthyUser()
	f.limit = 10
	r := Run(t.Context(), f, optionsOf(f))
	var b bytes.Buffer
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var back struct {
		Subject  map[string]any
		Count    map[string]int
		Findings []struct {
			ID, Group, Status, Title, Detail string
			WayOut                           []struct{ Do, Command string } `json:"way_out"`
		}
	}
	d := json.NewDecoder(&b)
	if err := d.Decode(&back); err != nil {
		t.Fatal(err)
	}
	if back.Subject["uid"] != 1000.0 || back.Count["warning"] != 1 || back.Count["problem"] != 0 ||
		len(back.Findings) != len(r.Findings) {
		t.Errorf("%+v", back)
	}
}

func TestText(t *testing.T) {
	f := healthyUser()
	f.denied[fuseDevice] = syscall.EACCES
	r := Run(t.Context(), f, optionsOf(f))
	short, all, narrow, colour := new(bytes.Buffer), new(bytes.Buffer), new(bytes.Buffer), new(bytes.Buffer)
	for w, s := range map[*bytes.Buffer]Style{
		short: {}, all: {All: true}, narrow: {Width: 60, All: true},
		colour: {Colour: true},
	} {
		if err := r.WriteText(w, s); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(short.String(), "# chmod 0666 /dev/fuse") ||
		!strings.Contains(short.String(), "1 problem, 0 warnings, 0 notes") {
		t.Errorf("short:\n%s", short)
	}
	if strings.Contains(short.String(), "7.45") || !strings.Contains(all.String(), "7.45") {
		t.Errorf("what is well is in full only with All:\n%s\n%s", short, all)
	}
	for line := range strings.Lines(narrow.String()) {
		if len([]rune(line)) > 61 && !strings.Contains(line, "# ") && !strings.Contains(line, "$ ") &&
			strings.Contains(strings.TrimSpace(line), " ") {
			t.Errorf("longer than 60: %q", line)
		}
	}
	if strings.Contains(short.String(), "\x1b") || !strings.Contains(colour.String(), "\x1b[31mproblem\x1b[0m") {
		t.Errorf("colours:\n%q", colour)
	}
}
