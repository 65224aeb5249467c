// Package image keeps container images on top of the layer store: their configs and manifests, byte for byte, their names,
// and which layers they hold. It brings images in from registries, OCI layouts and archives of docker and podman, gives them
// out in the same forms, and makes new ones of containers.
//
// # What an image is here
//
// An image is known by its id, the digest of its config, as in docker. It is a holder of the layer store (kind "image",
// key the id) that holds the topmost layer and carries the record as its data, as strict JSON. A name is a holder, too (kind
// "name", key the normal form of the name), whose data is the id; several names may stand for one image. An image appears,
// with its names, in the transaction that ends the lease on its layers, so it is there whole or not at all; moving a
// name is one transaction.
//
// Documents are files in ROOT/blobs/<algorithm>/<hex>, as in an OCI layout, written and synced before the record that
// names them. The compressed form of a layer is there only with KeepBlobs: the layer store gives the exact tar stream of
// every layer, but not the exact bytes that another program's gzip made of it. Without those bytes a push or an export
// compresses anew, and the digest of the manifest changes (Result.Rewritten); the id of the image never does.
//
// A download that breaks off leaves what it received in ROOT/blobs/partial, and the next pull goes on there. A blob that no
// image names is garbage, which GC removes.
//
// # What comes from outside
//
// Manifests, indexes, configs and archives are not trusted: digests are checked before they become names of files, an
// archive is read in place and never unpacked, a directory is read beneath a descriptor, sizes and counts are bounded, and
// every byte is compared with the digest that promised it.
//
// # Concurrency
//
// A Store may be used by any number of goroutines; the layer store's transactions order what happens. Two may add the same image at
// once; both get it. Of two downloads of one blob, the second waits for the first and finds the blob there.
//
//	Store.adding        for reading while an image is being added; for writing, by TryLock only, while blobs that no image names are removed
//	  blobs.locks       one blob's download
//	  Store.records     reading, changing and writing the record of an image
//
// Nobody holds both of the last two. The locks of the layer store come below all of them.
package image
