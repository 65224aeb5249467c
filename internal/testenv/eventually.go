package testenv

import (
	"testing"
	"time"
)

// Eventually returns when cond holds, which something else is about to see to, and ends the test if that does not happen. what says what is
// waited for. A minute is for machines that have much else to do.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute in vain: %s", what)
		}
	}
}
