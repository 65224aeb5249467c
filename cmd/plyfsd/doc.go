// Command plyfsd holds the daemons of plyfs: the containerd snapshotter, the graph-driver plugin for Docker and the exporter of
// metrics. They bring gRPC and the protocols' own packages with them, whose initialisation alone takes longer than a mount; so
// they live in a program of their own, and the one that is started for every mount stays lean. Users call plyfs, which runs
// plyfsd for those commands.
package main
