// Package overlaystore is what the drivers overlay2 and plyfs share: layers as directories in the layout of moby's
// overlay2 driver, which either of them mounts in its own way (Mounter).
//
//	home/
//	  l/LINK             symlink to ../ID/diff: short, so that many fit into the options of a mount
//	  ID/
//	    diff/            what the layer changes, in the overlay form: a writable layer's upper, a lower of all above
//	    link             LINK, 26 characters
//	    lower            l/LINK:l/LINK..., the layers below, topmost first; none for a layer without a parent
//	    work/            work directory of a writable layer
//	    merged/          where it is mounted, while it is
//	    restoring        an image layer that was lost, made anew beneath layers that have it as their parent: no content yet
//	    layer.json       parent, label and quota; moby's directories have none, and are image layers here
//	  .empty/            a lower for layers without a parent, which the kernel wants
//	  .*                 layers that are being made or deleted (layerdir); Cleanup removes what is left of them
//
// ID is the layer's id, but for "l", whose directory is "l.l". Names that begin with a dot are no ids.
//
// A layer is staged in a directory of its own and renamed to its place, and unpacked the same way; it is deleted by
// renaming it away first. So a crash leaves the layer whole, or not at all. `lower` holds the whole chain, so that a
// mount needs no walk; its length is bounded by what the kernel mounts (maxLowers).
//
// # Locks
//
//	Locks.Lock(id)       one layer's operations; nobody holds the locks of two layers
//	  Store.mu           the table: which layers there are, and who needs whom
//	    Mounts.mu        the references of mounts
//
// The table answers who needs a layer; all else about it is read from its directory when it is needed.
package overlaystore
