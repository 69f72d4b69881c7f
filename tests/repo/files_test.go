package repo_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// machineText is what only the machine of whoever wrote it has: paths below its home and work folders, and where it gets packages from.
// Classes of one character keep this file from matching itself.
var machineText = regexp.MustCompile(`(?:^|[\s"'=(:,` + "`" + `])/(?:[r]oot|[w]ork)/|/[h]ome/\w+/|(?:proxy|sum)[.]golang[.]org|registry[.]npmjs[.]org`)

// machineNamesKnown are files where such a text means another machine.
var machineNamesKnown = exceptions{
	"tests/lab/cmd/lab/vm.go": "the home folder of root in the lab's virtual machine",
	"tests/lab/vm/vm_test.go": "as above",
}

func machineNames(tr tree) []string {
	found := map[string]string{}
	for _, name := range tr.names {
		if strings.HasSuffix(name, "go.sum") {
			continue
		}
		for i, line := range strings.Split(tr.read(name), "\n") {
			if text := machineText.FindString(line); text != "" {
				found[name] = fmt.Sprintf("%s:%d: %q belongs to somebody's machine", name, i+1, text)
			}
		}
	}
	return machineNamesKnown.filter(found)
}

func TestMachineText(t *testing.T) {
	for _, row := range []struct {
		text  string
		match bool
	}{
		{"cd /" + "root/src", true},
		{"\"/" + "work/x\"", true},
		{"`/" + "work/x`", true},
		{"https://proxy.golang" + ".org", true},
		{"/home/" + "user/x", true},
		{"/proc/1/root/var", false},
		{"$WORK/root/usr", false},
	} {
		if got := machineText.MatchString(row.text); got != row.match {
			t.Errorf("%q: got %v", row.text, got)
		}
	}
}

// goMod is what `go mod edit -json` prints, as far as it is used here.
type goMod struct {
	Require []struct {
		Path, Version string
		Indirect      bool
	}
	Replace []struct {
		Old, New struct{ Path, Version string }
	}
}

func readGoMod(tr tree, name string) (goMod, error) {
	var mod goMod
	out, err := exec.Command("go", "mod", "edit", "-json", filepath.Join(tr.root, name)).Output()
	if err != nil {
		return mod, fmt.Errorf("read %s: %w", name, err)
	}
	return mod, json.Unmarshal(out, &mod)
}

// forks lists modules that are replaced by anything but a version of themselves, or of this repository.
func forks(tr tree) []string {
	var problems []string
	for _, name := range tr.names {
		if path.Base(name) != "go.mod" {
			continue
		}
		mod, err := readGoMod(tr, name)
		if err != nil {
			return []string{err.Error()}
		}
		for _, r := range mod.Replace {
			beside := within(r.Old.Path, module) && strings.HasPrefix(r.New.Path, "../")
			if !beside && (r.New.Path != r.Old.Path || r.New.Version == "") {
				problems = append(problems, fmt.Sprintf("%s: %s is replaced by %s: that is a fork", name, r.Old.Path, r.New.Path))
			}
		}
	}
	return problems
}

// unexplainedModules holds docs/DEPENDENCIES.md to what go.mod requires: a row for each direct module, and none for others.
func unexplainedModules(tr tree) []string {
	const page = "docs/DEPENDENCIES.md"
	mod, err := readGoMod(tr, "go.mod")
	if err != nil {
		return []string{err.Error()}
	}
	_, table, _ := strings.Cut(tr.read(page), "## Linked into atoll")
	table, _, _ = strings.Cut(table, "\n## ")
	explained := map[string]bool{}
	for _, row := range regexp.MustCompile(`(?m)^\| ([^|]+) \|`).FindAllStringSubmatch(table, -1) {
		for _, name := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			explained[name[1]] = true
		}
	}
	var problems []string
	for _, r := range mod.Require {
		if !r.Indirect && !explained[r.Path] {
			problems = append(problems, fmt.Sprintf("%s does not say what %s is for", page, r.Path))
		}
		if !r.Indirect {
			delete(explained, r.Path)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(explained)) {
		problems = append(problems, fmt.Sprintf("%s explains %s, which go.mod does not require directly", page, name))
	}
	return problems
}

// shellScripts returns the files that a shell runs or reads.
func shellScripts(tr tree) []string {
	var names []string
	for _, name := range tr.names {
		if path.Ext(name) == ".sh" || isShell(tr.read(name)) {
			names = append(names, name)
		}
	}
	return names
}

// isShell reports whether a file names a shell as its interpreter.
func isShell(text string) bool {
	first, _, _ := strings.Cut(text, "\n")
	return regexp.MustCompile(`^#!.*[/ ](?:ba|da)?sh\b`).MatchString(first)
}

// badScripts wants what people call to be executable, and to say in its head what it does and how it is called.
func badScripts(tr tree) []string {
	var problems []string
	for _, name := range shellScripts(tr) {
		text := tr.read(name)
		if !isShell(text) || !within(name, "scripts") {
			continue // read by others, as scripts/env.sh, or called by a machine, as .ci/run
		}
		if info, err := os.Stat(filepath.Join(tr.root, name)); err != nil || info.Mode()&0o111 != 0o111 {
			problems = append(problems, name+" is not executable: chmod 755 "+name)
		}
		head := ""
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, "#") {
				break
			}
			head += line
		}
		if !regexp.MustCompile(`(?m)^# Usage: .*` + regexp.QuoteMeta(path.Base(name))).MatchString(head) {
			problems = append(problems, fmt.Sprintf("%s: the comment at its head has no line %q", name, "# Usage: "+name+" ..."))
		}
	}
	return problems
}

func TestShellcheck(t *testing.T) {
	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Skip("shellcheck is not installed: scripts/deps lint")
	}
	tr := listTree(t)
	cmd := exec.Command("shellcheck", append([]string{"-f", "gcc", "--"}, shellScripts(tr)...)...)
	cmd.Dir = tr.root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
