package suite_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/atollhq/atoll/tests/conformance/suite"
)

const (
	dns    suite.Test = "[sig-network] DNS should provide DNS for the cluster [Conformance]"
	quota  suite.Test = "[sig-api-machinery] ResourceQuota should (not) fail [Conformance]"
	taints suite.Test = "[sig-node] NoExecuteTaintManager removes a pod [Disruptive] [Conformance]"
	alone  suite.Test = "[sig-network] Services work alone [Serial] [Conformance]"
)

func TestPlan(t *testing.T) {
	var got []string
	for _, b := range suite.Plan([]suite.Test{taints, dns, alone, quota}) {
		for _, test := range b.Tests {
			got = append(got, b.Name+": "+string(test))
			if b.Serial() != test.Serial() {
				t.Errorf("batch %s: serial is %v, but not for %s", b.Name, b.Serial(), test)
			}
		}
	}
	want := []string{
		"api-machinery: " + string(quota), "network: " + string(dns), "network-serial: " + string(alone), "node-serial: " + string(taints),
	}
	if !slices.Equal(got, want) {
		t.Errorf("plan is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestSelect(t *testing.T) {
	all := []suite.Test{dns, quota, alone}
	for name, row := range map[string]struct {
		focus, skip string
		want        []suite.Test
	}{
		"all":   {want: all},
		"focus": {focus: "sig-network", want: []suite.Test{dns, alone}},
		"both":  {focus: "sig-network", skip: "Serial", want: []suite.Test{dns}},
	} {
		t.Run(name, func(t *testing.T) {
			compile := func(text string) *regexp.Regexp {
				if text == "" {
					return nil
				}
				return regexp.MustCompile(text)
			}
			if got := suite.Select(all, compile(row.focus), compile(row.skip)); !slices.Equal(got, row.want) {
				t.Errorf("got %v, want %v", got, row.want)
			}
		})
	}
}

// fakeGinkgo writes the report of a run that ended before the last test.
const fakeGinkgo = `#!/bin/sh
for arg; do case $arg in --focus=*) focus=${arg#--focus=};; esac; done
echo "$focus" >focus
cat >report.json <<'EOF'
[{"SpecReports": [
 {"LeafNodeType": "BeforeSuite", "State": "passed"},
 {"ContainerHierarchyTexts": ["[sig-network] DNS"], "LeafNodeText": "should provide DNS for the cluster [Conformance]", "LeafNodeType": "It",
  "State": "passed", "RunTime": 3900000000},
 {"ContainerHierarchyTexts": ["[sig-api-machinery] ResourceQuota"], "LeafNodeText": "should (not) fail [Conformance]", "LeafNodeType": "It",
  "State": "failed", "RunTime": 1000000000,
  "Failure": {"Message": "it did", "Location": {"FileName": "k8s.io/kubernetes@v1.36.3/test/e2e/quota.go", "LineNumber": 7}}},
 {"ContainerHierarchyTexts": ["[sig-node] NoExecuteTaintManager"], "LeafNodeText": "removes a pod [Disruptive] [Conformance]", "LeafNodeType": "It",
  "State": "skipped", "RunTime": 0},
 {"ContainerHierarchyTexts": ["another"], "LeafNodeText": "test", "LeafNodeType": "It", "State": "skipped"}
]}]
EOF
exit 1
`

func TestRunReadsWhatBecameOfEachTest(t *testing.T) {
	dir := t.TempDir()
	ginkgo := filepath.Join(dir, "ginkgo")
	if err := os.WriteFile(ginkgo, []byte(fakeGinkgo), 0o755); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out")
	got, err := suite.Programs{Ginkgo: ginkgo}.Run(t.Context(), suite.Batch{Tests: []suite.Test{dns, quota, taints, alone}}, suite.Options{Out: out, Procs: 2})
	if err != nil {
		t.Fatal(err)
	}
	want := map[suite.Test]suite.Outcome{dns: suite.Passed, quota: suite.Failed, taints: suite.NotRun, alone: suite.NotRun}
	for test, outcome := range want {
		if got[test].Outcome != outcome {
			t.Errorf("%s: %s, want %s", test, got[test].Outcome, outcome)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d results, want %d", len(got), len(want))
	}
	if r := got[quota]; r.Why != "it did" || r.Where != "test/e2e/quota.go:7" {
		t.Errorf("failure is %q at %q", r.Why, r.Where)
	}
	focus, err := os.ReadFile(filepath.Join(out, "focus"))
	if err != nil {
		t.Fatal(err)
	}
	if re := regexp.MustCompile(strings.TrimSpace(string(focus))); !re.MatchString("suite "+string(quota)) || re.MatchString("suite "+string(quota)+" more") {
		t.Errorf("focus %s does not select exactly the tests of the batch", focus)
	}
}

func TestRunWithoutAReport(t *testing.T) {
	if _, err := (suite.Programs{Ginkgo: "/bin/true"}).Run(t.Context(), suite.Batch{Name: "x", Tests: []suite.Test{dns}}, suite.Options{Out: t.TempDir()}); err == nil {
		t.Error("a runner that left no report is taken for a run")
	}
}

func TestResultsGoOnAfterAnEndedRun(t *testing.T) {
	dir := t.TempDir()
	first, err := suite.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	first.Add(map[suite.Test]suite.Result{dns: {Outcome: suite.Passed, Seconds: 4}, quota: {Outcome: suite.Failed}, alone: {Outcome: suite.NotRun}})
	if err := first.Save(dir); err != nil {
		t.Fatal(err)
	}
	second, err := suite.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := []suite.Test{dns, quota, alone}
	if left := second.Left(all); !slices.Equal(left, all[1:]) {
		t.Errorf("left are %v, want %v", left, all[1:])
	}
	second.Add(map[suite.Test]suite.Result{quota: {Outcome: suite.NotRun}, alone: {Outcome: suite.Passed}})
	if second[quota].Outcome != suite.Failed || second[alone].Outcome != suite.Passed {
		t.Errorf("after the second run: %v", second)
	}
}
