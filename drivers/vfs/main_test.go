package vfs_test

import (
	"os"
	"testing"

	"plyfs/drivers/drivertest"
	"plyfs/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(drivertest.Main(m, testenv.Options{})) }
