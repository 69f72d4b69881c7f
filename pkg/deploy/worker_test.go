package deploy_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"github.com/atollhq/atoll/pkg/deploy"
)

// bench drives a worker over a real folder with a clock of its own. What reaches the cluster is written down.
type bench struct {
	t      *testing.T
	dir    string
	now    time.Time
	client *fake.Clientset
	worker deploy.Worker
	events *record.FakeRecorder
	calls  []string
	result map[string]deploy.Result // by path
	writes int                      // of the record
	broken bool                     // the API server does not answer
	cfg    deploy.Config
}

func newBench(t *testing.T, change ...func(*deploy.Config)) *bench {
	b := &bench{t: t, dir: t.TempDir(), now: time.Now(), client: fake.NewClientset(), result: map[string]deploy.Result{}}
	b.client.PrependReactor("*", "configmaps", func(a ktesting.Action) (bool, runtime.Object, error) {
		if b.broken {
			return true, nil, errors.New("connection refused")
		}
		if v := a.GetVerb(); v == "create" || v == "update" {
			b.writes++
		}
		return false, nil, nil
	})
	b.cfg = deploy.Config{Node: "n1", Folder: b.dir, Packaged: fstest.MapFS{}}
	for _, f := range change {
		f(&b.cfg)
	}
	b.restart("disk-1")
	return b
}

func (b *bench) restart(identity string) {
	b.t.Helper()
	b.events = record.NewFakeRecorder(100)
	var err error
	b.worker, err = deploy.NewWorker(b.cfg, identity, b.client, b.put, b.events, slog.New(slog.DiscardHandler))
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) put(path string, docs []deploy.Document, prune []schema.GroupVersionKind) deploy.Result {
	var names []string
	for _, d := range docs {
		names = append(names, d.Object.GetName())
	}
	b.calls = append(b.calls, fmt.Sprintf("%s(%s)", path, strings.Join(names, " ")))
	return b.result[path]
}

// run lets time pass; each pass of the worker comes when it asked for it.
func (b *bench) run(d time.Duration) {
	b.t.Helper()
	end := b.now.Add(d)
	for passes := 0; ; passes++ {
		wait := b.worker.Pass(b.now)
		if passes > 2000 {
			b.t.Fatal("the worker is never content")
		}
		if b.now = b.now.Add(wait); b.now.After(end) {
			b.now = end
			return
		}
	}
}

func (b *bench) write(name, text string) {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
	// The clock of the test runs faster than that of the disk.
	if err := os.Chtimes(path, b.now, b.now); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) remove(name string) {
	b.t.Helper()
	if err := os.RemoveAll(filepath.Join(b.dir, name)); err != nil {
		b.t.Fatal(err)
	}
}

// expect compares what reached the cluster since the last time.
func (b *bench) expect(want ...string) {
	b.t.Helper()
	if got := strings.Join(b.calls, ", "); got != strings.Join(want, ", ") {
		b.t.Errorf("reached the cluster: %q, want %q", got, strings.Join(want, ", "))
	}
	b.calls = nil
}

func (b *bench) status(path string) deploy.FileStatus {
	for _, s := range b.worker.M.Status() {
		if s.Path == path {
			return s
		}
	}
	return deploy.FileStatus{}
}

func (b *bench) expectState(path string, want deploy.State, cause string) {
	b.t.Helper()
	s := b.status(path)
	text := ""
	if len(s.Errors) > 0 {
		text = s.Errors[0].Cause
		if s.Errors[0].Remedy == "" {
			b.t.Errorf("%s: no remedy for %q", path, text)
		}
	}
	if s.State != want || !strings.Contains(text, cause) || cause == "" && text != "" {
		b.t.Errorf("%s is %q (%s), want %q (%s)", path, s.State, text, want, cause)
	}
}

func two(a, b string) string { return cm(a) + "---\n" + cm(b) }

func TestFilesComeChangeAndGo(t *testing.T) {
	b := newBench(t)
	b.run(time.Second)
	b.expect()

	b.write("a.yaml", two("a", "b"))
	b.run(300 * time.Millisecond)
	b.expect() // it may still be being written
	b.run(300 * time.Millisecond)
	b.expect("a.yaml(a b)")
	b.expectState("a.yaml", deploy.Applied, "")
	if n := b.status("a.yaml").Objects; n != 2 {
		t.Errorf("%d objects", n)
	}
	b.run(30 * time.Second)
	b.expect()

	b.write("a.yaml", two("a", "b")+"---\n"+cm("c"))
	b.run(600 * time.Millisecond)
	b.expect("a.yaml(a b c)")

	// An object less: it could be a copy that has stalled.
	b.write("a.yaml", cm("a"))
	b.run(2 * time.Second)
	b.expect()
	b.run(2 * time.Second)
	b.expect("a.yaml(a)")

	b.write("sub/b.yml", cm("x"))
	b.write("sub/.hidden.yaml", cm("no"))
	b.write("sub/notes.txt", "no")
	b.write("sub/b.yaml~", cm("no"))
	b.write(".git/c.yaml", cm("no"))
	b.run(time.Second)
	b.expect("sub/b.yml(x)")

	// An editor that moves the file away and writes it anew.
	b.remove("a.yaml")
	b.run(time.Second)
	b.write("a.yaml", cm("a"))
	b.run(time.Second)
	b.expect()

	b.remove("a.yaml")
	b.run(2 * time.Second)
	b.expect()
	b.run(2 * time.Second)
	b.expect("a.yaml()")
	if s := b.status("a.yaml"); s.State != "" {
		t.Errorf("still in the status: %+v", s)
	}
	b.remove("sub")
	b.run(4 * time.Second)
	b.expect("sub/b.yml()")
	if len(b.worker.Record()) != 0 {
		t.Errorf("on record: %+v", b.worker.Record())
	}
}

func TestRestart(t *testing.T) {
	b := newBench(t)
	b.write("a.yaml", two("a", "b"))
	b.write("b.yaml", cm("c"))
	b.write("gone.yaml", cm("g"))
	b.run(time.Second)
	b.expect("a.yaml(a b)", "b.yaml(c)", "gone.yaml(g)")
	writes := b.writes

	// While the server is down one file changes and one goes.
	b.now = b.now.Add(time.Minute)
	b.write("b.yaml", cm("d"))
	b.remove("gone.yaml")
	b.now = b.now.Add(time.Minute)
	b.restart("disk-1")
	b.run(100 * time.Millisecond)
	b.expect("b.yaml(d)") // written a minute ago: nobody is writing it
	b.run(4 * time.Second)
	b.expect("gone.yaml()")
	if b.writes-writes > 3 {
		t.Errorf("the record was written %d times", b.writes-writes)
	}

	writes = b.writes
	b.restart("disk-1")
	b.run(30 * time.Second)
	b.expect()
	b.expectState("a.yaml", deploy.Applied, "")
	if b.writes != writes {
		t.Error("a restart without changes wrote")
	}
}

func TestComparedWithTheClusterNowAndThen(t *testing.T) {
	b := newBench(t)
	b.write("a.yaml", cm("a"))
	b.run(59 * time.Second)
	b.expect("a.yaml(a)")
	writes, events := b.writes, len(b.events.Events)
	b.run(2 * time.Second)
	b.expect("a.yaml(a)")
	b.run(10 * time.Minute)
	b.expect("a.yaml(a)")
	if b.writes != writes || len(b.events.Events) != events {
		t.Error("comparing left traces though nothing had changed")
	}
}

func TestComparingThatFailsIsTriedAgain(t *testing.T) {
	b := newBench(t)
	b.write("a.yaml", cm("a"))
	b.run(30 * time.Second)
	b.result["a.yaml"] = deploy.Result{Errs: []deploy.FileError{{Cause: "the server is busy", Remedy: "wait"}}, Waits: true}
	b.run(time.Minute)
	b.expectState("a.yaml", deploy.Waiting, "the server is busy")
	delete(b.result, "a.yaml")
	b.calls = nil
	b.run(16 * time.Second)
	b.expect("a.yaml(a)")
	b.expectState("a.yaml", deploy.Applied, "")
	b.run(5 * time.Minute)
	b.expect()
}

func TestMistakes(t *testing.T) {
	b := newBench(t)
	b.write("a.yaml", two("a", "b"))
	b.run(time.Second)
	b.expect("a.yaml(a b)")

	b.write("a.yaml", cm("a")+"---\napiVersion: v1\nkind: Conf") // half a file
	b.run(time.Minute)
	b.expect()
	b.expectState("a.yaml", deploy.Failed, "metadata.name is missing")
	if e := b.status("a.yaml").Errors[0]; e.Document != 2 || e.Line != 5 {
		t.Errorf("%+v", e)
	}
	problems := b.worker.M.Problems()
	if len(problems) != 1 || !strings.Contains(problems[0].Error(), "manifest a.yaml, line 5") {
		t.Errorf("%v", problems)
	}
	if got := <-b.events.Events; !strings.Contains(got, "ManifestApplied") {
		t.Error(got)
	}
	if got := <-b.events.Events; !strings.Contains(got, "Warning ManifestFailed manifest a.yaml, line 5") {
		t.Error(got)
	}
	if len(b.events.Events) > 0 {
		t.Errorf("said again: %s", <-b.events.Events)
	}

	b.write("a.yaml", two("a", "c"))
	b.run(4 * time.Second)
	b.expect("a.yaml(a c)")
	b.expectState("a.yaml", deploy.Applied, "")
}

func TestFilesThatCannotBeRead(t *testing.T) {
	b := newBench(t)
	outside := filepath.Join(t.TempDir(), "secret.yaml")
	if err := os.WriteFile(outside, []byte(cm("secret")), 0o644); err != nil {
		t.Fatal(err)
	}
	b.write("real.yaml", cm("a"))
	for link, to := range map[string]string{"in.yaml": "real.yaml", "out.yaml": outside, "up.yaml": "../../etc/x.yaml", "dangling.yaml": "nowhere", "dir.yaml": "."} {
		if err := os.Symlink(to, filepath.Join(b.dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(b.dir, "huge.yaml"), make([]byte, 5<<20+1), 0o644); err != nil {
		t.Fatal(err)
	}
	b.run(time.Second)
	b.expect("in.yaml(a)", "real.yaml()") // the same object in two files
	b.expectState("out.yaml", deploy.Failed, "escapes")
	b.expectState("up.yaml", deploy.Failed, "escapes")
	b.expectState("dir.yaml", deploy.Failed, "link to a folder")
	b.expectState("huge.yaml", deploy.Failed, "bytes")
	b.expectState("real.yaml", deploy.Failed, "it is in in.yaml")
}

func TestFolderThatIsGoneRemovesNothing(t *testing.T) {
	b := newBench(t)
	b.write("a.yaml", cm("a"))
	b.run(time.Second)
	b.expect("a.yaml(a)")
	b.remove("")
	b.run(5 * time.Minute)
	b.expect()
	if problems := b.worker.M.Problems(); len(problems) != 1 || !errors.Is(problems[0], fs.ErrNotExist) {
		t.Errorf("%v", problems)
	}
	b.write("a.yaml", cm("a"))
	b.run(time.Minute)
	if problems := b.worker.M.Problems(); len(problems) != 0 {
		t.Errorf("%v", problems)
	}
}

// A new disk, or a restored server, with the name of an old node.
func TestEmptyDiskRemovesNothing(t *testing.T) {
	b := newBench(t)
	b.write("a.yaml", cm("a"))
	b.run(time.Second)
	b.expect("a.yaml(a)")
	b.remove("a.yaml")
	b.restart("disk-2")
	b.run(5 * time.Minute)
	b.expect()
	b.write("a.yaml", cm("a"))
	b.run(time.Second)
	b.expect("a.yaml(a)")
	if holders := b.worker.Record()["a.yaml"].Holders; len(holders) != 1 || holders["disk-2"].Node != "n1" {
		t.Errorf("holders %+v", holders)
	}
	b.remove("a.yaml")
	b.run(5 * time.Second)
	b.expect("a.yaml()")
}

func TestTwoServersWithTheSameFile(t *testing.T) {
	one := newBench(t)
	two := newBench(t, func(c *deploy.Config) { c.Node = "n2" })
	two.client = one.client
	two.restart("disk-2")
	one.write("a.yaml", cm("a"))
	two.write("a.yaml", cm("a"))
	one.run(time.Second)
	two.run(time.Second)
	one.expect("a.yaml(a)")
	two.expect("a.yaml(a)")
	one.remove("a.yaml")
	one.run(5 * time.Second)
	one.expect() // the other still has it
	two.run(5 * time.Second)
	two.remove("a.yaml")
	two.restart("disk-2")
	two.run(5 * time.Second)
	two.expect("a.yaml()")
}

func TestSkip(t *testing.T) {
	b := newBench(t, func(c *deploy.Config) {
		c.Packaged = fstest.MapFS{"dns.yaml": {Data: []byte(cm("dns"))}, "other.yaml": {Data: []byte(cm("other"))}}
	})
	b.write("dns.yaml.skip", "")
	b.write("mine.yaml", cm("dns"))
	b.write("later.yaml", cm("later"))
	b.run(time.Second)
	b.expect("packaged/other.yaml(other)", "later.yaml(later)", "mine.yaml(dns)")
	b.expectState("packaged/dns.yaml", deploy.Skipped, "")
	if !b.worker.Settled() {
		t.Error("a carried part that is skipped holds up the start")
	}
	b.write("later.yaml.skip", "")
	b.run(5 * time.Second)
	b.remove("later.yaml")
	b.run(5 * time.Minute)
	b.expect("packaged/other.yaml(other)", "mine.yaml(dns)") // compared with the cluster; later is left alone
	b.remove("later.yaml.skip")
	b.run(5 * time.Second)
	b.expect("later.yaml()")
}

func TestCarriedParts(t *testing.T) {
	carried := fstest.MapFS{
		"dns.yaml":     {Data: []byte(cm("dns") + "data: {ip: \"%{CLUSTER_DNS}%\"}\n")},
		"metrics.yaml": {Data: []byte(cm("metrics"))},
		"embed.go":     {Data: []byte("package x")},
	}
	off := ""
	b := newBench(t, func(c *deploy.Config) {
		c.Packaged, c.Values, c.Disabled = carried, map[string]string{"CLUSTER_DNS": "10.43.0.10"}, func(name string) bool { return name == off }
	})
	b.run(10 * time.Millisecond)
	b.expect("packaged/dns.yaml(dns)", "packaged/metrics.yaml(metrics)") // at once
	if !b.worker.Settled() {
		t.Error("not ready")
	}
	b.write("mine.yaml", two("dns", "x"))
	b.run(time.Second)
	b.expect("mine.yaml(x)")
	b.expectState("mine.yaml", deploy.Failed, "made by atoll itself")

	off = "dns"
	b.restart("disk-1")
	b.run(2 * time.Second)
	b.expect() // the file may still be being written
	b.run(2 * time.Second)
	b.expect("mine.yaml(dns x)", "packaged/dns.yaml()")
	b.expectState("mine.yaml", deploy.Applied, "")

	delete(carried, "metrics.yaml") // a newer version of the program
	b.restart("disk-1")
	b.run(time.Second)
	b.expect("packaged/metrics.yaml()")

	b.cfg.Values = nil
	off = ""
	if _, err := deploy.NewWorker(b.cfg, "x", b.client, b.put, b.events, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "no value for %{CLUSTER_DNS}%") {
		t.Errorf("%v", err)
	}
}

func TestRetries(t *testing.T) {
	b := newBench(t)
	b.result["cr.yaml"] = deploy.Result{Errs: []deploy.FileError{{Document: 1, Line: 1, Object: "Till a", Cause: "the cluster does not know the kind Till", Remedy: "install it"}}}
	b.write("cr.yaml", cm("a"))
	b.run(600 * time.Millisecond)
	b.expect("cr.yaml(a)")
	b.expectState("cr.yaml", deploy.Failed, "does not know the kind")
	b.run(time.Hour)
	if n := len(b.calls); n < 10 || n > 30 {
		t.Errorf("%d tries in an hour", n)
	}
	warnings := 0
	for len(b.events.Events) > 0 {
		if strings.Contains(<-b.events.Events, "Warning") {
			warnings++
		}
	}
	if warnings != 1 {
		t.Errorf("%d events about the same", warnings)
	}
	b.calls = nil

	// What it waits for comes: it is tried at once.
	b.write("crd.yaml", cm("crd"))
	delete(b.result, "cr.yaml")
	b.run(1500 * time.Millisecond)
	b.expect("crd.yaml(crd)", "cr.yaml(a)")
	b.expectState("cr.yaml", deploy.Applied, "")

	// A correction is tried at once, too.
	b.result["x.yaml"] = deploy.Result{Errs: []deploy.FileError{{Cause: "bad", Remedy: "correct it"}}}
	b.write("x.yaml", cm("x"))
	b.run(20 * time.Minute)
	b.calls = nil
	delete(b.result, "x.yaml")
	b.write("x.yaml", cm("other"))
	b.run(600 * time.Millisecond)
	b.expect("x.yaml(other)")
}

func TestPruneThatFailsIsTriedAgain(t *testing.T) {
	b := newBench(t)
	b.write("a.yaml", cm("a"))
	b.run(time.Second)
	b.remove("a.yaml")
	b.result["a.yaml"] = deploy.Result{Errs: []deploy.FileError{{Cause: "a webhook refuses", Remedy: "look at it"}}}
	b.run(4 * time.Second)
	b.expectState("a.yaml", deploy.Failed, "a webhook refuses")
	delete(b.result, "a.yaml")
	b.calls = nil
	b.run(5 * time.Second)
	b.expect("a.yaml()")
	if len(b.worker.M.Status()) != 0 || len(b.worker.Record()) != 0 {
		t.Errorf("%+v, %+v", b.worker.M.Status(), b.worker.Record())
	}
}

func TestAPIServerAway(t *testing.T) {
	b := newBench(t)
	b.broken = true
	b.write("a.yaml", cm("a"))
	b.run(time.Minute)
	b.expect()
	b.broken = false
	b.run(16 * time.Second)
	b.expect("a.yaml(a)")
	b.broken = true
	b.write("a.yaml", two("a", "b"))
	b.run(time.Minute)
	b.broken = false
	b.run(16 * time.Second)
	if n := len(b.calls); n == 0 || b.calls[n-1] != "a.yaml(a b)" {
		t.Errorf("%q", b.calls)
	}
	if b.worker.Record()["a.yaml"].Hash == "" {
		t.Error("not on record")
	}
}

// Kinds are on record before objects exist: power may fail in between.
func TestKindsAreRecordedFirst(t *testing.T) {
	b := newBench(t)
	b.result["a.yaml"] = deploy.Result{Errs: []deploy.FileError{{Cause: "power failed", Remedy: "none"}}}
	b.write("a.yaml", cm("a"))
	b.run(600 * time.Millisecond)
	store := deploy.NewStore(b.client)
	record, err := store.Load(context.Background())
	if err != nil || len(record["a.yaml"].Kinds) != 1 || record["a.yaml"].Kinds[0] != cmKind {
		t.Fatalf("%+v, %v", record, err)
	}
	b.remove("a.yaml")
	b.restart("disk-1")
	delete(b.result, "a.yaml")
	b.calls = nil
	b.run(5 * time.Second)
	b.expect("a.yaml()")
}

func TestTooManyFiles(t *testing.T) {
	b := newBench(t)
	b.write("a.yaml", cm("a"))
	b.run(time.Second)
	b.expect("a.yaml(a)")
	for i := range 1000 {
		b.write(fmt.Sprintf("many/%d.yaml", i), cm(fmt.Sprint("m", i)))
	}
	b.run(10 * time.Second)
	b.expect()
	if problems := b.worker.M.Problems(); len(problems) != 1 || !strings.Contains(problems[0].Error(), "more than 1000") {
		t.Errorf("%v", problems)
	}
}
