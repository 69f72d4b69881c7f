package main

import (
	"strings"
	"testing"
)

func TestCountsWhatRan(t *testing.T) {
	events := `{"Action":"run","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Test":"A","Output":"    a_test.go:1: broken\n"}
{"Action":"fail","Package":"p","Test":"A","Elapsed":0.1}
{"Action":"pass","Package":"p","Test":"B"}
{"Action":"output","Package":"p","Test":"C","Output":"    c_test.go:1: needs root\n"}
{"Action":"skip","Package":"p","Test":"C"}
{"Action":"fail","Package":"p"}
`
	count := tally{output: map[string][]string{}}
	var out strings.Builder
	if err := count.read(strings.NewReader(events), &out); err != nil {
		t.Fatal(err)
	}
	if count.passed != 1 || count.failed != 1 || count.skipped != 1 {
		t.Errorf("counted %+v", count)
	}
	for _, want := range []string{"broken", "needs root", "FAIL  p"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, out.String())
		}
	}
}

func TestPackageThatDoesNotCompileCounts(t *testing.T) {
	count := tally{output: map[string][]string{}}
	var out strings.Builder
	if err := count.read(strings.NewReader(`{"Action":"fail","Package":"p"}`+"\n"), &out); err != nil {
		t.Fatal(err)
	}
	if count.failed == 0 {
		t.Error("the failure is not counted")
	}
}
