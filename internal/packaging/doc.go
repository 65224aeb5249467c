// Package packaging is what turns the programs into something that is installed: systemd units, the example of a configuration file, the
// descriptions of Debian and RPM packages with their scripts, the generator of manual pages (manual) and the pinned tool that writes
// packages (tools). The Makefile's targets install, uninstall, deb and rpm use it. It holds no code of its own but the tests of what they
// make: make test-packages runs all, make test a short form.
package packaging
