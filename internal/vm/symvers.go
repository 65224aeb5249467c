package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// symbolSize is that of struct kernel_symbol with absolute addresses: value, name, name space.
const symbolSize = 24

var errNoSymbols = errors.New("not an unrelocated kernel of 64 bits with exported symbols")

// symvers writes what the build of a kernel leaves in Module.symvers: the symbols that modules may use. They are read out
// of the export tables of an ELF kernel whose addresses are absolute, as user-mode Linux is. Sums of the symbols' types
// are not in it: it serves kernels without CONFIG_MODVERSIONS.
func symvers(kernel string, out io.Writer) error {
	f, err := elf.Open(kernel)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, table := range []struct{ section, kind string }{
		{"__ksymtab", "EXPORT_SYMBOL"},
		{"__ksymtab_gpl", "EXPORT_SYMBOL_GPL"},
	} {
		s := f.Section(table.section)
		if s == nil || s.Size%symbolSize != 0 {
			return fmt.Errorf("%s: section %s: %w", kernel, table.section, errNoSymbols)
		}
		data, err := s.Data()
		if err != nil {
			return fmt.Errorf("%s: section %s: %w", kernel, table.section, err)
		}
		for ; len(data) > 0; data = data[symbolSize:] {
			name, err := stringAt(f, binary.LittleEndian.Uint64(data[8:]))
			if err != nil || name == "" {
				return fmt.Errorf("%s: section %s: %w", kernel, table.section, errors.Join(errNoSymbols, err))
			}
			space, err := stringAt(f, binary.LittleEndian.Uint64(data[16:]))
			if err != nil {
				return fmt.Errorf("%s: symbol %s: %w", kernel, name, err)
			}
			if _, err := fmt.Fprintf(out, "0x00000000\t%s\tvmlinux\t%s\t%s\n", name, table.kind, space); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxSymbol bounds a symbol's name; the kernel's own limit is KSYM_NAME_LEN, 512.
const maxSymbol = 1024

// stringAt returns the string at an address; that at 0 is empty.
func stringAt(f *elf.File, addr uint64) (string, error) {
	if addr == 0 {
		return "", nil
	}
	for _, s := range f.Sections {
		if s.Type == elf.SHT_NOBITS || addr < s.Addr || addr >= s.Addr+s.Size || s.Addr == 0 {
			continue
		}
		buf := make([]byte, min(maxSymbol, s.Addr+s.Size-addr))
		if _, err := s.ReadAt(buf, int64(addr-s.Addr)); err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		name, _, ok := bytes.Cut(buf, []byte{0})
		if !ok {
			return "", fmt.Errorf("string at %#x does not end: %w", addr, errNoSymbols)
		}
		return string(name), nil
	}
	return "", fmt.Errorf("no string at %#x: %w", addr, errNoSymbols)
}
