package drivers

import (
	"errors"
	"fmt"
)

// Classes of errors. What drivers return wraps one of them wherever a caller would act on it; a protocol or a command
// line maps each of them once.
var (
	// ErrNotFound says that there is no such layer, or no such driver.
	ErrNotFound = errors.New("not found")
	// ErrExists says that there is such a layer already.
	ErrExists = errors.New("already exists")
	// ErrInUse says that something is mounted, or is needed by something else.
	ErrInUse = errors.New("in use")
	// ErrHangs, which wraps ErrInUse, says that the server of a mount does not answer: whoever asks the mount waits with it.
	ErrHangs = fmt.Errorf("%w by a server that does not answer", ErrInUse)
	// ErrInvalid says that an argument can never be right.
	ErrInvalid = errors.New("invalid argument")
	// ErrNotSupported says that this driver cannot do that here: the kernel, the backing file system or a privilege is
	// missing.
	ErrNotSupported = errors.New("not supported")
	// ErrPrerequisites says that a driver cannot be used until something is installed or configured.
	ErrPrerequisites = errors.New("prerequisites for the driver are not met")
	// ErrIncompatibleFS says that the backing file system does not carry the driver.
	ErrIncompatibleFS = errors.New("incompatible backing file system")
	// ErrOtherDriver says that another driver made the store.
	ErrOtherDriver = errors.New("the store belongs to another driver")
	// ErrDamaged says that something of a layer is missing, or is not what was written.
	ErrDamaged = errors.New("damaged")
)
