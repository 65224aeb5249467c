package control_test

import (
	"os"
	"testing"

	"plyfs/internal/testenv"
)

func TestMain(m *testing.M) {
	if os.Getenv(envBecome) != "" {
		os.Exit(becomeServer())
	}
	os.Exit(testenv.Main(m, testenv.Options{}))
}
