package kv

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"
	"github.com/dgraph-io/badger/v4"
)

const (
	// SealFile is the name of the seal in the directory of a database.
	SealFile = "seal"
	// sealHead is the first line of a seal, with the version of the seal and that of the schema.
	sealHead = "plyfs database %d %d\n"
	// sealVersion is that of the seal and of how the library is used.
	sealVersion = 1
	// sealLimit bounds what is read of a seal: 100,000 files.
	sealLimit = 8 << 20

	// discardFile is where the library counts garbage in value logs. Of a sealed database it says nothing.
	discardFile = "DISCARD"
	valueLogExt = ".vlog"
	memTableExt = ".mem"
	// valueLogHead is the size in bytes of the header of a value log.
	valueLogHead = 20
)

// sealLine returns what a seal says of a file: its name, size, how much of it is checked, and the checksum of that.
func sealLine(dir, name string) (string, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() {
		return "", fmt.Errorf("%w: %s is not a file", ErrForeign, name)
	}
	part := st.Size()
	if strings.HasSuffix(name, valueLogExt) {
		part = min(part, valueLogHead)
	}
	sum := xxhash.New()
	if _, err := io.CopyN(sum, f, part); err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	return fmt.Sprintf("%s %d %d %016x\n", name, st.Size(), part, sum.Sum64()), nil
}

// writeSeal syncs the files in dir, which is of a database that was closed, and seals them.
func writeSeal(dir string, schema uint16) error {
	if err := os.Remove(filepath.Join(dir, discardFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	names, err := namesIn(dir)
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, sealHead, sealVersion, schema)
	for _, name := range names {
		if strings.HasSuffix(name, memTableExt) {
			return fmt.Errorf("%w: %s is left of it", ErrUnclean, name)
		}
		if err := syncPath(filepath.Join(dir, name)); err != nil {
			return err
		}
		line, err := sealLine(dir, name)
		if err != nil {
			return err
		}
		b.WriteString(line)
	}
	fmt.Fprintf(&b, "%016x\n", xxhash.Sum64String(b.String()))
	path := filepath.Join(dir, SealFile)
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		return err
	}
	return errors.Join(syncPath(path), syncPath(dir))
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// verifySeal compares the files in dir with their seal.
func verifySeal(dir string, schema uint16) error {
	names, err := namesIn(dir)
	if err != nil {
		return err
	}
	if !slices.Contains(names, SealFile) {
		if slices.Contains(names, badger.ManifestFilename) {
			return ErrUnclean
		}
		return ErrForeign
	}
	seal, err := readSeal(filepath.Join(dir, SealFile))
	if err != nil {
		return err
	}
	lines, err := openSeal(seal, schema)
	if err != nil {
		return err
	}
	for _, line := range lines {
		name, _, _ := strings.Cut(line, " ")
		i, found := slices.BinarySearch(names, name)
		if !found {
			return fmt.Errorf("%w: %s is missing", ErrDamaged, name)
		}
		names = slices.Delete(names, i, i+1)
		if now, err := sealLine(dir, name); err != nil && scarce(err) {
			return err
		} else if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		} else if now != line {
			return fmt.Errorf("%w: %s is not as it was sealed", ErrDamaged, name)
		}
	}
	if len(names) != 1 {
		return fmt.Errorf("%w: %v do not belong to it", ErrForeign, slices.DeleteFunc(names, isSeal))
	}
	return checkManifest(dir, schema)
}

func isSeal(name string) bool { return name == SealFile }

func readSeal(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, sealLimit))
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return string(b), nil
}

// openSeal returns the lines of a seal for files, which it has checked to be whole and of this version.
func openSeal(seal string, schema uint16) ([]string, error) {
	var version, of int
	if _, err := fmt.Sscanf(seal, sealHead, &version, &of); err != nil {
		return nil, fmt.Errorf("%w: its %s is of something else", ErrForeign, SealFile)
	}
	if version != sealVersion || of != int(schema) {
		return nil, fmt.Errorf("%w: seal %d of schema %d, this program knows %d of %d",
			ErrVersion, version, of, sealVersion, schema)
	}
	lines := strings.SplitAfter(seal, "\n")
	// Behind the last line break nothing is left.
	if len(lines) < 3 || lines[len(lines)-1] != "" {
		return nil, fmt.Errorf("%w: its %s is cut short", ErrDamaged, SealFile)
	}
	sum, lines := lines[len(lines)-2], lines[:len(lines)-2]
	if fmt.Sprintf("%016x\n", xxhash.Sum64String(strings.Join(lines, ""))) != sum {
		return nil, fmt.Errorf("%w: the checksum of its %s does not match", ErrDamaged, SealFile)
	}
	return lines[1:], nil
}
