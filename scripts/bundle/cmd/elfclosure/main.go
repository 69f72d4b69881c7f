// Command elfclosure copies a dynamically linked program, its loader and every library it needs into one folder.
//
// It reads the headers of the files itself and never runs them, so it works for any architecture.
//
//	elfclosure -root UNPACKED-PACKAGES -out DIR path/of/program/below/root
package main

import (
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	root := flag.String("root", "", "folder into which the packages were unpacked")
	out := flag.String("out", "", "folder to fill")
	flag.Parse()
	if *root == "" || *out == "" || flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := collect(*root, *out, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "elfclosure:", err)
		os.Exit(1)
	}
}

func collect(root, out, program string) error {
	libraries, err := librariesIn(root)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	done := map[string]bool{}
	todo := []string{filepath.Join(root, program)}
	for len(todo) > 0 {
		file := todo[0]
		todo = todo[1:]
		if done[filepath.Base(file)] {
			continue
		}
		done[filepath.Base(file)] = true
		if err := copyFile(file, filepath.Join(out, filepath.Base(file))); err != nil {
			return err
		}
		needed, err := neededBy(file)
		if err != nil {
			return fmt.Errorf("read %s: %w", file, err)
		}
		for _, name := range needed {
			path, ok := libraries[name]
			if !ok {
				return fmt.Errorf("%s needs %s, which no unpacked package has", file, name)
			}
			todo = append(todo, path)
		}
	}
	return nil
}

// librariesIn maps the names of all shared libraries and loaders below root to their paths; the first folder in name order wins.
func librariesIn(root string) (map[string]string, error) {
	found := map[string]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.Contains(entry.Name(), ".so") {
			return err
		}
		if _, known := found[entry.Name()]; !known {
			found[entry.Name()] = path
		}
		return nil
	})
	return found, err
}

// neededBy returns the libraries that file asks for and the name of the loader that it wants, if any.
func neededBy(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	needed, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, segment := range f.Progs {
		if segment.Type != elf.PT_INTERP {
			continue
		}
		text := make([]byte, segment.Filesz)
		if _, err := segment.ReadAt(text, 0); err != nil {
			return nil, err
		}
		needed = append(needed, filepath.Base(strings.TrimRight(string(text), "\x00")))
	}
	return needed, nil
}

// copyFile follows links: packages install a library under its full version and link the short name to it.
func copyFile(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if len(text) == 0 {
		return errors.New(from + " is empty")
	}
	return os.WriteFile(to, text, 0o755)
}
