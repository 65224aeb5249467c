package packaging_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"plyfs/internal/cmdtable"
)

// unit is a systemd unit: the values of each key, in their order.
type unit struct {
	path string
	keys map[string][]string
}

// units reads all units, and fails the test over what is no line of one.
func units(t *testing.T) []unit {
	t.Helper()
	paths, err := filepath.Glob("systemd/*/*")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no units: %v", err)
	}
	var all []unit
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		u := unit{path: path, keys: make(map[string][]string)}
		section := ""
		for l := range strings.Lines(string(text)) {
			l = strings.TrimSpace(l)
			key, value, isKey := strings.Cut(l, "=")
			switch {
			case l == "" || strings.HasPrefix(l, "#"):
			case strings.HasPrefix(l, "[") && strings.HasSuffix(l, "]"):
				section = l
			case isKey && section != "":
				u.keys[key] = append(u.keys[key], value)
			default:
				t.Errorf("%s: %q is neither a section nor a key of one", path, l)
			}
		}
		all = append(all, u)
	}
	return all
}

// A unit runs a command that there is, says when it serves, and is started by something.
func TestUnitsRunTheDaemons(t *testing.T) {
	table := commands(t)
	for _, u := range units(t) {
		if len(u.keys["WantedBy"]) == 0 {
			t.Errorf("%s: nothing wants it", u.path)
		}
		name, isService := strings.CutSuffix(filepath.Base(u.path), ".service")
		if !isService {
			continue
		}
		daemon := strings.TrimPrefix(name, "plyfs-")
		if exec := strings.Join(u.keys["ExecStart"], ""); !strings.Contains(exec, "@BINDIR@/plyfs "+daemon) {
			t.Errorf("%s runs %q", u.path, exec)
		}
		if cmdtable.Find(table, daemon) == nil {
			t.Errorf("%s: there is no command %s", u.path, daemon)
		}
		if !slices.Equal(u.keys["Type"], []string{"notify"}) {
			t.Errorf("%s: Type is %v: what comes after it would come too early", u.path, u.keys["Type"])
		}
	}
}

// The daemon's end must not be that of the mounts which containers use, and what it mounts must be seen by others.
func TestUnitsKeepMountsAlive(t *testing.T) {
	separate := []string{
		"ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateMounts", "ProtectKernelTunables", "ProtectKernelModules",
		"ProtectKernelLogs", "ProtectControlGroups", "ProtectProc", "ProcSubset", "ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths",
		"TemporaryFileSystem", "BindPaths", "BindReadOnlyPaths", "RootDirectory", "RootImage", "MountFlags", "DynamicUser", "MountAPIVFS",
		"DeviceAllow", "DevicePolicy", "ProtectClock",
	}
	for _, u := range units(t) {
		for key := range u.keys {
			if slices.Contains(separate, key) {
				t.Errorf("%s: %s gives the daemon another view of mounts or devices", u.path, key)
			}
		}
		if strings.Contains(u.path, "metrics") || strings.HasSuffix(u.path, ".socket") {
			continue
		}
		if !slices.Equal(u.keys["KillMode"], []string{"process"}) {
			t.Errorf("%s: KillMode is %v: a restart would kill the servers of mounts", u.path, u.keys["KillMode"])
		}
		if !slices.Equal(u.keys["TasksMax"], []string{"infinity"}) || !slices.Equal(u.keys["OOMPolicy"], []string{"continue"}) {
			t.Errorf("%s: TasksMax is %v, OOMPolicy %v: servers of mounts are in its group, too", u.path, u.keys["TasksMax"], u.keys["OOMPolicy"])
		}
		if slices.Contains(u.keys["RestrictSUIDSGID"], "yes") {
			t.Errorf("%s: RestrictSUIDSGID keeps layers from having such files", u.path)
		}
	}
}

// The socket that systemd opens is the one at which the daemon listens.
func TestSocketUnitHasTheDaemonsAddress(t *testing.T) {
	for _, u := range units(t) {
		name, ok := strings.CutSuffix(filepath.Base(u.path), ".socket")
		if !ok {
			continue
		}
		c := cmdtable.Find(commands(t), strings.TrimPrefix(name, "plyfs-"))
		if c == nil {
			t.Errorf("%s: there is no such command", u.path)
			continue
		}
		i := slices.IndexFunc(c.Flags, func(f cmdtable.Flag) bool { return f.Names[0] == "address" })
		if want := strings.TrimPrefix(c.Flags[i].Default, "unix://"); !slices.Equal(u.keys["ListenStream"], []string{want}) {
			t.Errorf("%s listens at %v, the daemon at %s", u.path, u.keys["ListenStream"], want)
		}
		if !slices.Equal(u.keys["SocketMode"], []string{"0600"}) {
			t.Errorf("%s: SocketMode is %v", u.path, u.keys["SocketMode"])
		}
	}
}
