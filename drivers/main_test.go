package drivers_test

import (
	"os"
	"testing"

	"plyfs/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m, testenv.Options{})) }

var must = testenv.Must
