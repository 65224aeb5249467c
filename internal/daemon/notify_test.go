package daemon_test

import (
	"net"
	"path/filepath"
	"testing"

	"plyfs/internal/daemon"
	"plyfs/internal/testenv"
)

func TestNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := daemon.Ready(); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	path := filepath.Join(testenv.Scratch(t), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	for want, tell := range map[string]func() error{
		"READY=1":         daemon.Ready,
		"STOPPING=1":      daemon.Stopping,
		"STATUS=2 mounts": func() error { return daemon.Notify("STATUS=2 mounts") },
	} {
		if err := tell(); err != nil {
			t.Error(err)
		}
		if heard, err := received(manager); err != nil || heard != want {
			t.Errorf("systemd heard %q, %v, want %q", heard, err, want)
		}
	}
	t.Setenv("NOTIFY_SOCKET", path+"-gone")
	if err := daemon.Ready(); err == nil {
		t.Error("no error though nobody listens")
	}
}
