// Command multicall prepares one program out of several commands, so that what they share is linked once.
//
// The CNI plugins are seven commands of 3 to 4 MB each that differ in little. Their packages are called main and so cannot be
// imported. This program copies each command's sources out of the module cache into a work folder, renames the package and its
// main function, and writes a main that picks the command by the name it was started with. The result is shown to `go build`
// through an overlay: nothing is added to the source tree and no upstream line is changed.
//
//	go run ./cmd/multicall -out DIR -into PACKAGE-DIR import/path/of/command...
//	go build -overlay DIR/overlay.json ./PACKAGE-DIR
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	out := flag.String("out", "", "work folder for the prepared sources and overlay.json")
	into := flag.String("into", "", "folder, below the module root, in which the program appears to live")
	flag.Parse()
	if *out == "" || *into == "" || flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := prepare(*out, *into, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "multicall:", err)
		os.Exit(1)
	}
}

// prepare writes the renamed sources of each command, the dispatching main and the overlay that makes them visible.
func prepare(out, into string, commands []string) error {
	out, err := filepath.Abs(out)
	if err != nil {
		return err
	}
	module, root, err := currentModule()
	if err != nil {
		return err
	}
	overlay := map[string]string{}
	place := func(rel string, source []byte) error {
		file := filepath.Join(out, rel)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		overlay[filepath.Join(root, into, rel)] = file
		return os.WriteFile(file, source, 0o644)
	}
	var names []string
	for _, command := range commands {
		name := path.Base(command)
		names = append(names, name)
		files, err := sourcesOf(command)
		if err != nil {
			return err
		}
		for _, file := range files {
			source, err := rename(file)
			if err != nil {
				return fmt.Errorf("rename %s: %w", file, err)
			}
			if err := place(filepath.Join(name, filepath.Base(file)), source); err != nil {
				return err
			}
		}
	}
	source, err := dispatcher(path.Join(module, into), names)
	if err != nil {
		return err
	}
	if err := place("main.go", source); err != nil {
		return err
	}
	text, err := json.MarshalIndent(map[string]any{"Replace": overlay}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "overlay.json"), text, 0o644)
}

func currentModule() (module, root string, err error) {
	text, err := goList("-m", "-f", "{{.Path}}\n{{.Dir}}")
	if err != nil {
		return "", "", err
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != 2 {
		return "", "", fmt.Errorf("not inside one module: %q", text)
	}
	return lines[0], lines[1], nil
}

// sourcesOf lists the files that the build of command would compile for the present GOOS and GOARCH.
func sourcesOf(command string) ([]string, error) {
	text, err := goList("-f", "{{.Dir}}\n{{range .GoFiles}}{{.}}\n{{end}}", command)
	if err != nil {
		return nil, err
	}
	lines := strings.Fields(text)
	if len(lines) < 2 {
		return nil, fmt.Errorf("%s has no Go files", command)
	}
	var files []string
	for _, name := range lines[1:] {
		files = append(files, filepath.Join(lines[0], name))
	}
	return files, nil
}

func goList(args ...string) (string, error) {
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go list %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

// rename returns the text of file with `package main` and `func main` renamed. Every other byte stays.
func rename(file string) ([]byte, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	set := token.NewFileSet()
	parsed, err := parser.ParseFile(set, file, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	if parsed.Name.Name != "main" {
		return nil, errors.New("not a command: package " + parsed.Name.Name)
	}
	idents := []*ast.Ident{parsed.Name}
	names := []string{"command"}
	for _, decl := range parsed.Decls {
		if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "main" {
			idents, names = append(idents, fn.Name), append(names, "Main")
		}
	}
	// From the end to the start, so that earlier offsets stay valid.
	for i, ident := range slices.Backward(idents) {
		at := set.Position(ident.Pos()).Offset
		text = slices.Concat(text[:at], []byte(names[i]), text[at+len("main"):])
	}
	return text, nil
}

// dispatcher returns the main that runs the command whose name the program was started with.
func dispatcher(base string, names []string) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("// Made by cmd/multicall; runs the command whose name it was started with.\npackage main\n\nimport (\n\"fmt\"\n\"os\"\n\"path/filepath\"\n\n")
	for i, name := range names {
		fmt.Fprintf(&b, "c%d %q\n", i, path.Join(base, name))
	}
	b.WriteString(")\n\nfunc main() {\nswitch name := filepath.Base(os.Args[0]); name {\n")
	for i, name := range names {
		fmt.Fprintf(&b, "case %q:\nc%d.Main()\n", name, i)
	}
	fmt.Fprintf(&b, "default:\nfmt.Fprintf(os.Stderr, \"%%s: start this program by one of the names %s\\n\", name)\nos.Exit(2)\n}\n}\n", strings.Join(names, ", "))
	return format.Source(b.Bytes())
}
