package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"plyfs/drivers"
)

// driverCommand is plyfs driver.
func driverCommand() *cli.Command {
	return storeGroup(
		"driver", "list and try graph drivers", driverLsCommand(), driverProbeCommand(), driverStatusCommand(),
	)
}

// driverLine is a driver in the output of --json.
type driverLine struct {
	Name    string `json:"name"`
	Summary string `json:"summary"`
	// Available says that plyfs has the driver; others are known by name only.
	Available bool `json:"available"`
}

func driverLsCommand() storeCommand {
	return storeCommand{
		name: "ls", usage: "list the drivers, the preferred first", line: "plyfs driver ls [--json]", max: 0,
		description: "What they are good for here says plyfs driver probe.",
		bare: func(_ context.Context, s *session) error {
			var lines []driverLine
			var rows [][]string
			for _, f := range s.options.Registry.Factories() {
				l := driverLine{Name: f.Name, Summary: f.Summary, Available: f.Open != nil}
				lines = append(lines, l)
				if l.Available {
					rows = append(rows, []string{l.Name, l.Summary})
				}
			}
			if s.json() {
				return s.printJSON(lines)
			}
			return s.printTable([]string{"DRIVER", "IS"}, rows)
		},
	}
}

func driverProbeCommand() storeCommand {
	return storeCommand{
		name: "probe", usage: "say which drivers are usable for the store, why, and what to do", max: -1,
		line:        "plyfs driver probe [--json] [DRIVER...]",
		description: "Each driver is tried in a scratch directory, by the user who asks. Exit code 6 if none of them is usable.",
		bare: func(ctx context.Context, s *session) error {
			reports := s.options.Registry.Probe(ctx, s.options.ForDriver)
			// A new store chooses among all of them, whichever are asked about.
			chosen := ""
			if f, err := s.options.Registry.Choose(reports); err == nil {
				chosen = f.Name
			}
			if len(s.args) > 0 {
				var err error
				if reports, err = reportsOf(s, reports); err != nil {
					return err
				}
			}
			if err := s.printReports(reports, chosen); err != nil {
				return err
			}
			for _, r := range reports {
				if r.Usable {
					return nil
				}
			}
			return &fault{Code: storeUnsupported}
		},
	}
}

// reportsOf picks the reports of the named drivers.
func reportsOf(s *session, reports []drivers.Report) (picked []drivers.Report, err error) {
	for _, name := range s.args {
		n := len(picked)
		for _, r := range reports {
			if r.Driver == name {
				picked = append(picked, r)
			}
		}
		if len(picked) == n {
			_, err := s.options.Registry.Lookup(name)
			return nil, err
		}
	}
	return picked, nil
}

// printReports prints what was found of each driver, and which of them a new store would get.
func (s *session) printReports(reports []drivers.Report, chosen string) error {
	if s.json() {
		type line struct {
			drivers.Report
			Chosen bool `json:"chosen"`
		}
		lines := make([]line, 0, len(reports))
		for _, r := range reports {
			lines = append(lines, line{r, r.Driver == chosen})
		}
		return s.printJSON(lines)
	}
	for _, r := range reports {
		verdict := "not usable"
		switch {
		case r.Driver == chosen:
			verdict = "usable, and what a new store gets"
		case r.Usable && r.Passed:
			verdict = "usable, if asked for"
		case r.Usable:
			verdict = "usable"
		}
		fmt.Fprintf(s.printer(), "%s: %s\n    %s\n", r.Driver, verdict, oneLine(r.Why))
		if r.Warning != "" {
			fmt.Fprintf(s.printer(), "    warning: %s\n", oneLine(r.Warning))
		}
		if r.Todo != "" {
			fmt.Fprintf(s.printer(), "    to do: %s\n", oneLine(r.Todo))
		}
	}
	return nil
}

func driverStatusCommand() storeCommand {
	return storeCommand{
		name: "status", usage: "describe the driver of the store", line: "plyfs driver status [--json]", max: 0,
		run: func(ctx context.Context, s *session) error {
			pairs, err := s.layers.Driver().Status(ctx)
			if err != nil {
				return err
			}
			if s.json() {
				return s.printJSON(struct {
					Driver string         `json:"driver"`
					Root   string         `json:"root"`
					Status []drivers.Pair `json:"status"`
				}{s.layers.Driver().Name(), s.layers.Root(), append([]drivers.Pair{}, pairs...)})
			}
			fields := [][2]string{{"Driver", s.layers.Driver().Name()}, {"Root", s.layers.Root()}}
			for _, p := range pairs {
				fields = append(fields, [2]string{p.Label, p.Value})
			}
			return s.printFields(fields)
		},
	}
}
