//go:build !vm

package overlay2_test

import (
	"testing"

	"plyfs/drivers/drivertest"
	"plyfs/internal/testenv"
)

// TestSuite is not for the virtual machine: on its older kernels a tmpfs has no user attributes.
func TestSuite(t *testing.T) { drivertest.Run(t, suite()) }

func TestSuiteInUserNamespace(t *testing.T) { testenv.RunInUserNamespace(t, "^TestSuite$") }
