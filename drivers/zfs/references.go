package zfs

// References implements drivers.Referrer.
func (d *Driver) References() map[string]int { return d.mounts.References() }
