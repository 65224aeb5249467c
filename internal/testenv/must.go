package testenv

import "testing"

// Must ends the test with the first of the errors that is not nil, if there is one.
func Must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}
