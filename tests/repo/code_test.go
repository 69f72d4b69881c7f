package repo_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"path"
	"slices"
	"strings"
	"testing"
)

// longestFile is in lines. A longer one is usually two nouns.
const longestFile = 600

// longFilesKnown are longer for a reason.
var longFilesKnown = exceptions{
	"scripts/install.sh": "people pipe it into a shell, so it is one file",
}

// changingVariablesKnown are package variables that change, "folder: variable".
var changingVariablesKnown = exceptions{
	"pkg/cli: os.Args":                       "kubectl reads its arguments from there",
	"pkg/network/dns: caddy.Quiet":           "CoreDNS has no other way to be told",
	"pkg/network/dns: dnsserver.Quiet":       "as above",
	"pkg/storage: utilruntime.ErrorHandlers": "a test in a synctest bubble, where this handler would sleep for decades",
	"tests/install: bases":                   "root folders that the tests share, because they take seconds to make",
	"tests/install: basesMu":                 "as above",
	"tests/install: shared":                  "set by TestMain",
	"tests/install: standins":                "set by TestMain",
	"tests/lab: built":                       "set by TestMain",
}

func longFiles(tr tree) []string {
	found := map[string]string{}
	for _, name := range tr.names {
		if !slices.Contains([]string{".go", ".c", ".sh"}, path.Ext(name)) && path.Dir(name) != "scripts" {
			continue
		}
		if n := strings.Count(tr.read(name), "\n"); n > longestFile {
			found[name] = fmt.Sprintf("%s has %d lines, more than %d: it is probably two nouns", name, n, longestFile)
		}
	}
	return longFilesKnown.filter(found)
}

// missingPackageComments wants "Package NAME ..." or, for programs, "Command NAME ...", where NAME is what people call it.
func missingPackageComments(tr tree) []string {
	var problems []string
	for _, files := range tr.packages() {
		name, dir := files[0].syntax.Name.Name, files[0].dir()
		if strings.HasSuffix(name, "_test") && slices.ContainsFunc(tr.files, func(f goFile) bool { return f.dir() == dir && f.syntax.Name.Name+"_test" == name }) {
			continue // the tests of the package beside them
		}
		want := "Package " + name + " "
		if name == "main" {
			want = "Command " + path.Base(dir) + " "
		}
		if !slices.ContainsFunc(files, func(f goFile) bool { return f.syntax.Doc != nil && strings.HasPrefix(f.syntax.Doc.Text(), want) }) {
			problems = append(problems, fmt.Sprintf("%s: no package comment that starts with %q", dir, want))
		}
	}
	return problems
}

func initFunctions(tr tree) []string {
	var problems []string
	for _, f := range tr.files {
		for _, decl := range f.syntax.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				problems = append(problems, fmt.Sprintf("%s: has an init function: let main or the caller call it by a name", tr.position(fn.Pos())))
			}
		}
	}
	return problems
}

func changingVariables(tr tree) []string {
	found := map[string]string{}
	for _, files := range tr.packages() {
		var syntax []*ast.File
		for _, f := range files {
			syntax = append(syntax, f.syntax)
		}
		for _, c := range changes(tr.fset, syntax) {
			key := files[0].dir() + ": " + c.variable
			found[key] = fmt.Sprintf("%s: %s belongs to the whole program and is changed here: pass it along instead", tr.position(c.pos), c.variable)
		}
	}
	return changingVariablesKnown.filter(found)
}

// change is a place where the variable of a package, this one or an imported one ("klog.Level"), gets another value.
type change struct {
	variable string
	pos      token.Pos
}

// changes finds them in one package. Names are resolved, but imports are not loaded: that would take minutes, and what is
// declared elsewhere does not matter. So a method that changes its receiver goes unseen, but for the types made to be changed.
func changes(fset *token.FileSet, files []*ast.File) []change {
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	config := types.Config{Importer: noImports{}, Error: func(error) {}}
	pkg, _ := config.Check("p", fset, files, info) // its errors are about what was not imported

	var all []change
	add := func(e ast.Expr) {
		if name := packageVariable(pkg, info, e); name != "" {
			all = append(all, change{name, e.Pos()})
		}
	}
	for _, file := range files {
		for _, decl := range file.Decls {
			if gen, ok := decl.(*ast.GenDecl); ok && gen.Tok == token.VAR {
				all = append(all, madeToChange(gen)...)
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				if n.Tok != token.DEFINE {
					for _, e := range n.Lhs {
						add(e)
					}
				}
			case *ast.IncDecStmt:
				add(n.X)
			case *ast.RangeStmt:
				if n.Tok == token.ASSIGN {
					add(n.Key)
					add(n.Value)
				}
			case *ast.UnaryExpr:
				if n.Op == token.AND {
					add(n.X)
				}
			case *ast.CallExpr:
				if fn, ok := n.Fun.(*ast.Ident); ok && len(n.Args) > 0 && slices.Contains([]string{"delete", "clear", "copy"}, fn.Name) {
					add(n.Args[0])
				}
			}
			return true
		})
	}
	return all
}

// packageVariable returns the name of the package variable that e is, or is a part of; nothing for other expressions.
func packageVariable(pkg *types.Package, info *types.Info, e ast.Expr) string {
	for {
		switch x := e.(type) {
		case *ast.ParenExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.SelectorExpr:
			if id, ok := x.X.(*ast.Ident); ok {
				if _, imported := info.Uses[id].(*types.PkgName); imported {
					return id.Name + "." + x.Sel.Name
				}
			}
			e = x.X
		case *ast.Ident:
			if v, ok := info.Uses[x].(*types.Var); ok && v.Parent() == pkg.Scope() {
				return x.Name
			}
			return ""
		default:
			return ""
		}
	}
}

// madeToChange returns the variables of a declaration whose type has no other use: locks, atomics, wait groups.
func madeToChange(decl *ast.GenDecl) []change {
	var all []change
	for _, spec := range decl.Specs {
		spec := spec.(*ast.ValueSpec)
		sel, ok := spec.Type.(*ast.SelectorExpr)
		if !ok {
			continue
		}
		if id, ok := sel.X.(*ast.Ident); ok && (id.Name == "sync" || id.Name == "atomic") {
			all = append(all, change{spec.Names[0].Name, spec.Pos()})
		}
	}
	return all
}

type noImports struct{}

func (noImports) Import(string) (*types.Package, error) { return nil, errors.New("not loaded") }

func TestChanges(t *testing.T) {
	const source = `package p

import ("sync"; "example/klog")

var fixed, count, table, limits = 1, 2, map[string]int{}, struct{ n int }{}
var lock sync.Mutex

func f(count int) { count++; limits := limits; limits.n = fixed; use(table["a"]) }
func g() { count++; table["a"] = 1; delete(table, "b"); limits.n = 2; klog.Level = 3; parse(&fixed) }
`
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "p.go", source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range changes(fset, []*ast.File{file}) {
		got = append(got, fmt.Sprint(c.variable, " line ", fset.Position(c.pos).Line))
	}
	want := []string{"lock line 6", "count line 9", "table line 9", "table line 9", "limits line 9", "klog.Level line 9", "fixed line 9"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
