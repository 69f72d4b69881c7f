package lab_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/tests/lab"
)

func itoa(n int) string { return strconv.Itoa(n) }

func unixDial(address string) (net.Conn, error) { return net.DialTimeout("tcp", address, time.Second) }

// ownerDir, in the environment, makes this test program build a lab there and wait to be killed.
const ownerDir = "LAB_TEST_OWNER_DIR"

func ownLab(dir string) int {
	o := lab.Options{
		Dir: dir, ID: lab.AnyID, Bound: true, Command: os.Getenv("LAB_TEST_COMMAND"), Binary: os.Getenv("LAB_TEST_BINARY"),
		Images: []string{},
	}
	l, err := lab.Create(context.Background(), o)
	if err == nil {
		err = l.Up(context.Background())
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("up")
	for {
		_ = unix.Pause()
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the lab makes namespaces, mounts and control groups")
	}
}

// startOwner starts a program that owns a lab in dir, and waits until the lab is up.
func startOwner(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), ownerDir+"="+dir, "LAB_TEST_COMMAND="+built.command, "LAB_TEST_BINARY="+built.standin)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line := make([]byte, 100)
	n, err := out.Read(line)
	if string(line[:n]) != "up\n" {
		t.Fatalf("owner says %q, %v", line[:n], err)
	}
	return cmd
}

// TestLabGoesWithItsOwner kills a program that owns a lab, as a test that times out or is interrupted would be.
func TestLabGoesWithItsOwner(t *testing.T) {
	needRoot(t)
	before := hostState(t)
	dir := labDir(t)
	cmd := startOwner(t, dir)
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	wantSame(t, before)
	if _, err := os.Stat(dir); err == nil {
		t.Error("the lab's folder is still there")
	}
}

// TestAbandonedLabIsRemovedByTheNext kills an owner together with its guard: nobody is left to clean up at once.
func TestAbandonedLabIsRemovedByTheNext(t *testing.T) {
	needRoot(t)
	before := hostState(t)
	dir := labDir(t)
	owner := startOwner(t, dir)
	killGuards(t)
	must(t, owner.Process.Kill())
	_ = owner.Wait()
	if _, err := os.Stat(filepath.Join(dir, "lab.json")); err != nil {
		t.Fatalf("the lab is gone already: %v", err)
	}
	t.Run("next", func(t *testing.T) {
		newLab(t, lab.Options{})
		if _, err := os.Stat(dir); err == nil {
			t.Error("the abandoned lab is still there")
		}
	})
	wantSame(t, before)
}

// killGuards kills the guards of this test program's labs.
func killGuards(t *testing.T) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	killed := 0
	for _, file := range lines {
		text, _ := os.ReadFile(file) // may be gone
		if strings.HasPrefix(string(text), built.command+"\x00guard\x00") {
			must(t, unix.Kill(atoi(strings.Split(file, "/")[2]), unix.SIGKILL))
			killed++
		}
	}
	if killed == 0 {
		t.Fatal("no guard was found")
	}
}

// TestOldFolderDoesNotHarmANewLab removes the folder of a lab whose number has gone to another lab since, after a reboot say.
func TestOldFolderDoesNotHarmANewLab(t *testing.T) {
	l := newLab(t, lab.Options{})
	ctx := mustUp(t, l)
	record, err := os.ReadFile(filepath.Join(l.Dir(), "lab.json"))
	must(t, err)
	var fields map[string]any
	must(t, json.Unmarshal(record, &fields))
	fields["uid"] = "0123456789abcdef"
	record, err = json.Marshal(fields)
	must(t, err)
	old := labDir(t)
	must(t, os.MkdirAll(filepath.Join(old, "s1"), 0o755))
	must(t, os.WriteFile(filepath.Join(old, "lab.json"), record, 0o600))

	found, err := lab.Remove(ctx, old)
	if err != nil || !found {
		t.Errorf("found %v, %v", found, err)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("the old folder is still there")
	}
	if err := l.Site(1).Node(1).Ready(ctx); err != nil {
		t.Errorf("the new lab was harmed: %v", err)
	}
}

// TestDownAfterACrash kills "up" at many moments; "down" must then remove all that was made.
func TestDownAfterACrash(t *testing.T) {
	needRoot(t)
	before := hostState(t)
	dir := labDir(t)
	up := []string{"--dir", dir, "up", "--id", "15", "--sites", "2", "--nodes", "2", "--no-images", "--binary", built.standin}
	whole := measureUp(t, dir, up)
	const moments = 24
	for i := range moments {
		after := whole * time.Duration(i) / moments
		cmd := exec.Command(built.command, up...)
		must(t, cmd.Start())
		timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		timer.Stop()
		partial := err != nil
		out, err := exec.Command(built.command, "--dir", dir, "down").CombinedOutput()
		if err != nil {
			t.Fatalf("down after up was killed at %s: %v\n%s", after, err, out)
		}
		wantSame(t, before)
		if t.Failed() {
			t.Fatalf("up was killed at %s (partial: %v)", after, partial)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		left, _ := filepath.Glob(dir + "/*")
		t.Errorf("the lab's folder is still there, with %v", left)
	}
}

// measureUp runs "up" and "down" once and returns how long "up" takes.
func measureUp(t *testing.T, dir string, up []string) time.Duration {
	t.Helper()
	began := time.Now()
	if out, err := exec.Command(built.command, up...).CombinedOutput(); err != nil {
		t.Fatalf("up: %v\n%s", err, out)
	}
	whole := time.Since(began)
	if out, err := exec.Command(built.command, "--dir", dir, "down").CombinedOutput(); err != nil {
		t.Fatalf("down: %v\n%s", err, out)
	}
	return whole
}

func TestDownWithoutTheFolder(t *testing.T) {
	needRoot(t)
	before := hostState(t)
	dir := labDir(t)
	o := lab.Options{Dir: dir, ID: lab.AnyID, Command: built.command, Binary: built.standin, Images: []string{}}
	l, err := lab.Create(testContext(t), o)
	must(t, err)
	must(t, l.Up(testContext(t)))
	must(t, os.RemoveAll(dir))
	found, err := lab.Remove(testContext(t), dir)
	if err != nil || !found {
		t.Errorf("found %v, %v", found, err)
	}
	wantSame(t, before)
}

func TestSecondLab(t *testing.T) {
	l := newLab(t, lab.Options{})
	ctx := testContext(t)
	mustUp(t, l)
	o := lab.Options{Dir: l.Dir(), ID: lab.AnyID, Command: built.command, Binary: built.standin}

	t.Run("in the same folder", func(t *testing.T) {
		_, err := lab.Create(ctx, o)
		if err == nil || !strings.Contains(err.Error(), "is up already") || remedy.Of(err) == "" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("with the same number", func(t *testing.T) {
		second := o
		second.Dir = labDir(t)
		second.ID = int(l.Site(1).Node(1).Address().As4()[1]) - 77
		_, err := lab.Create(ctx, second)
		if err == nil || !strings.Contains(err.Error(), "is up already") || remedy.Of(err) == "" {
			t.Errorf("got %v", err)
		}
	})
	must(t, l.Site(1).Node(1).Ready(ctx)) // the first one was not touched
}

func TestBadOptions(t *testing.T) {
	needRoot(t)
	good := lab.Options{Dir: labDir(t), ID: lab.AnyID, Command: built.command, Binary: built.standin}
	for name, change := range map[string]func(*lab.Options){
		"too many sites": func(o *lab.Options) { o.Sites = 100 },
		"negative nodes": func(o *lab.Options) { o.Nodes = -1 },
		"number":         func(o *lab.Options) { o.ID = 16 },
		"no binary":      func(o *lab.Options) { o.Binary = "/no/such/file" },
		"no folder":      func(o *lab.Options) { o.Dir = "" },
	} {
		t.Run(name, func(t *testing.T) {
			before := hostState(t)
			o := good
			change(&o)
			if _, err := lab.Create(testContext(t), o); err == nil {
				t.Error("was accepted")
			}
			wantSame(t, before)
		})
	}
	if _, err := lab.Open(good.Dir, nil); err == nil || remedy.Of(err) == "" {
		t.Errorf("open a lab that is not there: %v", err)
	}
}
