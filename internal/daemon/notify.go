package daemon

import (
	"fmt"

	sd "github.com/coreos/go-systemd/v22/daemon"
)

// Notify tells the service manager a state, lines of NAME=VALUE as of sd_notify(3). Where nobody wants to know, since the
// process was not started by systemd, that is no error.
func Notify(state string) error {
	if _, err := sd.SdNotify(false, state); err != nil {
		return fmt.Errorf("sd_notify %s: %w", state, err)
	}
	return nil
}

// Ready tells that the daemon serves: a unit of Type=notify counts as started, and those after it start.
func Ready() error { return Notify(sd.SdNotifyReady) }

// Stopping tells that the daemon is ending. Command does so when its context ends.
func Stopping() error { return Notify(sd.SdNotifyStopping) }
