package repo_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/atollhq/atoll"

// TestRules holds the tree to its own rules. Each is a function that returns all that breaks it.
func TestRules(t *testing.T) {
	tr := parseTree(t)
	for _, rule := range []struct {
		name   string
		broken func(tree) []string
	}{
		{"imports point one way", brokenImports},
		{"packages say what they are", missingPackageComments},
		{"files are short", longFiles},
		{"nothing happens before main", initFunctions},
		{"package variables do not change", changingVariables},
		{"no machine in the text", machineNames},
		{"replace only pins", forks},
		{"modules are explained", unexplainedModules},
		{"scripts can be run and say how", badScripts},
	} {
		t.Run(rule.name, func(t *testing.T) {
			for _, problem := range rule.broken(tr) {
				t.Error(problem)
			}
		})
	}
}

// tree is the repository: every file that git tracks or would track.
type tree struct {
	root  string
	names []string // slash-separated, below root
	fset  *token.FileSet
	files []goFile
}

// goFile is one parsed file. Parsing alone is enough for the rules and sees every platform's files, which loading packages would not.
type goFile struct {
	name    string // slash-separated, below the root
	imports []string
	syntax  *ast.File
}

func (f goFile) dir() string  { return path.Dir(f.name) }
func (f goFile) isTest() bool { return strings.HasSuffix(f.name, "_test.go") }

func (tr tree) read(name string) string {
	data, err := os.ReadFile(filepath.Join(tr.root, name))
	if err != nil {
		return "" // deleted since git listed it
	}
	return string(data)
}

// position is where something is, as people write it: file:line.
func (tr tree) position(pos token.Pos) string {
	p := tr.fset.Position(pos)
	return fmt.Sprintf("%s:%d", strings.TrimPrefix(filepath.ToSlash(p.Filename), tr.root+"/"), p.Line)
}

// packages groups the Go files by folder and package name, so that an external test package is a package of its own.
func (tr tree) packages() [][]goFile {
	groups := map[string][]goFile{}
	for _, f := range tr.files {
		key := f.dir() + " " + f.syntax.Name.Name
		groups[key] = append(groups[key], f)
	}
	var sorted [][]goFile
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		sorted = append(sorted, groups[key])
	}
	return sorted
}

// listTree asks git for the files, and parses none.
func listTree(t *testing.T) tree {
	t.Helper()
	tr := tree{root: "../..", fset: token.NewFileSet()}
	// The clone may belong to another user, as it does in containers; listing runs nothing of what is in it.
	cmd := exec.Command("git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = tr.root
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("the rules are about what git tracks, and it cannot list that here: %v", err)
	}
	for _, name := range strings.Split(strings.TrimRight(string(out), "\x00"), "\x00") {
		if info, err := os.Lstat(filepath.Join(tr.root, name)); err == nil && info.Mode().IsRegular() {
			tr.names = append(tr.names, name)
		}
	}
	return tr
}

func parseTree(t *testing.T) tree {
	t.Helper()
	tr := listTree(t)
	for _, name := range tr.names {
		if path.Ext(name) != ".go" {
			continue
		}
		syntax, err := parser.ParseFile(tr.fset, filepath.Join(tr.root, name), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		f := goFile{name: name, syntax: syntax}
		for _, spec := range syntax.Imports {
			f.imports = append(f.imports, strings.Trim(spec.Path.Value, `"`))
		}
		tr.files = append(tr.files, f)
	}
	if len(tr.files) < 100 {
		t.Fatalf("only %d Go files found: the rules would hold for next to nothing", len(tr.files))
	}
	return tr
}

// exceptions are the known breaks of a rule, each with its reason. One that is no longer needed is a problem too.
type exceptions map[string]string

// filter takes the problems of a rule by their key and returns those without an exception, sorted.
func (e exceptions) filter(found map[string]string) []string {
	var problems []string
	for key, problem := range found {
		if _, known := e[key]; !known {
			problems = append(problems, problem)
		}
	}
	for key := range e {
		if _, needed := found[key]; !needed {
			problems = append(problems, "the exception for "+key+" is not needed any more: take it off the list")
		}
	}
	slices.Sort(problems)
	return problems
}
