package sys

import "runtime"

// keepAlive pins a buffer whose address was hidden in an integer until the call that used it returned.
func keepAlive(b []byte) { runtime.KeepAlive(b) }
