// Command manual writes the manual pages of plyfs in the language of man(7). Nothing is written twice: what a command takes comes from
// the programs' own table of commands (plyfs __commands), and what it means from docs/cli.md, sections of which become sections of
// pages.
//
//	plyfs __commands | manual -docs docs -date 2026-01-31 -version 1.2.3 -out DIR
//
// It makes DIR/man1, man5 and man8. The same input gives the same bytes.
package main
