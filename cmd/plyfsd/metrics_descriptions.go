package main

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// descriptions are those of all metrics.
type descriptions struct {
	all []*prometheus.Desc

	info, started, lowers                                      *prometheus.Desc
	requests, requestErrors, duration, readBytes, writtenBytes *prometheus.Desc
	copyUps, copyUpBytes, copyUpDuration, unsynced             *prometheus.Desc
	index, cache, open, inodes                                 *prometheus.Desc
	resident, heap, goroutines, cpu                            *prometheus.Desc
	panics, logged, readers, stale, notifications              *prometheus.Desc
	quotaBytes, quotaLimitBytes, quotaInodes, quotaLimitInodes *prometheus.Desc
	mounts, scrapeErrors, scrapeDuration, buildInfo            *prometheus.Desc
}

// mountLabels are those of every metric of a mount.
func mountLabels() []string { return []string{"mount", "container", "image", "pid"} }

func newDescriptions() descriptions {
	var d descriptions
	add := func(to **prometheus.Desc, name, help string, labels []string) {
		*to = prometheus.NewDesc("plyfs_"+name, help, labels, nil)
		d.all = append(d.all, *to)
	}
	mount := func(to **prometheus.Desc, name, help string, labels ...string) {
		add(to, name, help, slices.Concat(mountLabels(), labels))
	}
	mount(&d.info, "mount_info", "What the mount is; always 1.", "engine", "type", "data", "version")
	mount(&d.started, "mount_start_time_seconds", "When the mount began to serve, since the Unix epoch.")
	mount(&d.lowers, "mount_lowers", "Number of lower layers.")

	mount(&d.requests, "requests_total", "Requests of the kernel.", "op")
	mount(&d.requestErrors, "request_errors_total", "Requests that were refused, by class of error.", "op", "class")
	mount(&d.duration, "request_duration_seconds",
		"Time from reading a request to its answer, of the requests since the first scrape.", "op")
	mount(&d.readBytes, "read_bytes_total", "Data of files that READ requests were answered with.")
	mount(&d.writtenBytes, "written_bytes_total", "Data of files that WRITE and COPY_FILE_RANGE requests wrote.")

	mount(&d.copyUps, "copy_ups_total", "Objects that were copied from a lower layer to the upper.")
	mount(&d.copyUpBytes, "copy_up_bytes_total", "Data that was copied up.")
	mount(&d.copyUpDuration, "copy_up_duration_seconds", "Time of copying one object up.")
	mount(&d.unsynced, "unsynced_files", "Copied-up files whose data may not be on disk yet.")

	mount(&d.index, "index_directories_total",
		"Merged directories looked up in the stack index: found, missing, or read from the layers as the index is not believed any more.",
		"result")
	mount(&d.cache, "descriptor_lookups_total", "How often a descriptor of a layer's file was open already, or not.", "kind", "result")
	mount(&d.open, "open_descriptors", "Descriptors of layers' files that the server keeps open.", "kind")
	mount(&d.inodes, "inodes", "Inodes that the kernel remembers.")

	mount(&d.resident, "resident_memory_bytes", "Resident memory of the server.")
	mount(&d.heap, "heap_bytes", "Memory of live and not yet collected objects of the server.")
	mount(&d.goroutines, "goroutines", "Goroutines of the server.")
	mount(&d.cpu, "cpu_seconds_total", "Processor time of the server, user and system.")

	mount(&d.panics, "panics_total", "Panics in requests, which were answered EIO.")
	mount(&d.logged, "log_messages_total", "Messages that the server logged.", "level")
	mount(&d.readers, "readers_started_total", "Readers that were started because the others were busy.")
	mount(&d.stale, "stale_ids_total", "Node ids that went stale as their file was copied up while open, in data=passthrough.")
	mount(&d.notifications, "notifications_total", "Notifications by which the kernel was told to forget attributes.")

	mount(&d.quotaBytes, "quota_used_bytes", "What the upper takes up, of mounts with a quota.")
	mount(&d.quotaLimitBytes, "quota_limit_bytes", "What the upper may take up; 0 for no limit.")
	mount(&d.quotaInodes, "quota_used_inodes", "Inodes of the upper, of mounts with a quota.")
	mount(&d.quotaLimitInodes, "quota_limit_inodes", "Inodes that the upper may have; 0 for no limit.")

	add(&d.mounts, "mounts", "Mounts whose control sockets were found.", []string{"state"})
	add(&d.scrapeErrors, "scrape_errors_total", "Mounts that could not be asked, and metrics that could not be told, since the exporter began.", nil)
	add(&d.scrapeDuration, "scrape_duration_seconds", "Time of asking all mounts.", nil)
	add(&d.buildInfo, "exporter_build_info", "Version of the exporter; always 1.", []string{"version"})
	return d
}
