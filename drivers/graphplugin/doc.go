// Package graphplugin serves Docker 20.10 to 26 as a graph-driver plugin, version 1: dockerd keeps its layers through any of
// the drivers of package drivers. It translates the protocol (HTTP with JSON over a socket) and keeps what a driver does not
// know: what dockerd said when it started, and what dockerd has not decided yet. How a layer is kept and mounted is the
// driver's business; images, names and digests are dockerd's.
//
// # The protocol
//
// dockerd posts to /Plugin.Activate and /GraphDriver.METHOD. Bodies are JSON, or empty, with no Content-Type; that of ApplyDiff,
// and the answer of Diff, are tar streams. What a driver refuses is answered with status 200 and {"Err": "..."}, as is what
// dockerd shows to its user; a request that is none is answered with 400; an error of Diff with 500, since its answer has no other
// place for one, and once bytes are out the connection is cut (cf. moby v20.10 pkg/plugins/client.go and
// daemon/graphdriver/proxy.go).
//
// # What is kept
//
//	STATE/lock           one plugin at a time
//	STATE/init.json      what dockerd said in Init: it never says it again to a plugin that was restarted
//	HOME/lock            one plugin at a time, whatever its STATE
//	HOME/driver          the driver's name: the layers are of no use to another
//	HOME/layers/         the driver's home
//	HOME/drafts/ID       a layer of Create that is not an image layer yet (see below)
//	HOME/run/BOOT/       what the driver keeps of this boot: references to mounts
//
// HOME is dockerd's choice, DATA-ROOT/NAME-OF-THE-PLUGIN. All of it is written aside, synced and renamed.
//
// # Drafts
//
// After Create, dockerd either fills the layer with ApplyDiff, or mounts it with Get and writes into it (BuildKit does). The
// contract of package drivers has two calls for these, so the layer is made as an image layer, and a draft says that this may
// change: ApplyDiff ends the draft, the first Get exchanges the empty layer for a writable one. Should the process die between
// the two halves of the exchange, the draft says how to make the layer anew.
//
// # Restarts
//
// Mounts are served by processes of their own, so containers run on when the plugin ends. A plugin that starts reads what Init
// said and finds the mounts with their references (drivers.Mounts). A dockerd that starts calls Init: references of its
// predecessor are void, but for one to each writable layer, which it gives back with Put, or goes on with (live-restore). A Put
// of a layer that is not mounted is no error, and Remove gives back what is still referred to. A call that dockerd repeats, since
// the plugin died before the answer, finds what it wants and succeeds.
//
// # Locks
//
//	Plugin.mu (RW)         which store is open: for reading during each call; for writing while Init, the first call or Close changes it
//	  store.locks, by id   operations on one layer that are more than one call of the driver
//	    the driver's own
package graphplugin
