package drivers

import (
	"context"
	"errors"
	"testing"
)

// TestLocksBegin holds that an operation begins only with an id that can be one and for someone who still waits for it, and
// that one that does not begin holds nothing.
func TestLocksBegin(t *testing.T) {
	var l Locks
	if _, err := l.Begin(t.Context(), "a/b"); !errors.Is(err, ErrInvalid) {
		t.Errorf("a bad id: %v", err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := l.Begin(ended, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that ended: %v", err)
	}
	first, err := l.Begin(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	waiting, end := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := l.Begin(waiting, "a")
		done <- err
	}()
	other, err := l.Begin(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	other()
	end()
	first()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a context that ended while another was waited for: %v", err)
	}
	again, err := l.Begin(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	again()
	if len(l.held) != 0 {
		t.Errorf("%d locks are left", len(l.held))
	}
}
