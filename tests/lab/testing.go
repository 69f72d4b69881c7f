package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/atollhq/atoll/tests/images"
)

// TB is what New needs of testing.TB. The command does not link package testing.
type TB interface {
	Helper()
	Name() string
	Failed() bool
	Cleanup(f func())
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skip(args ...any)
}

// New builds a lab for one test, with all nodes off. It is removed when the test ends, also when the test process is killed. When
// the test has failed, the nodes' logs are copied to out/lab-logs/<test>. Without root the test is skipped.
//
// Unset options get these defaults: a folder below out/lab-tests, any free number, the built bin/atoll, and the test images. An
// empty, non-nil Images means none.
func New(t TB, o Options) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the lab makes namespaces, mounts and control groups")
	}
	ctx := context.Background()
	root, err := Repository()
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	if err := o.forTest(ctx, root, t.Name()); err != nil {
		t.Fatalf("lab: %v", err)
	}
	l, err := Create(ctx, o)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			to := filepath.Join(root, "out", "lab-logs", fileName(t.Name()))
			if err := l.CopyLogs(to); err != nil {
				t.Logf("lab: copy logs: %v", err)
			}
			t.Logf("lab: logs of all nodes are in %s", to)
		}
		if err := l.Down(ctx); err != nil {
			t.Fatalf("lab: %v", err)
		}
	})
	return l
}

func (o *Options) forTest(ctx context.Context, root, name string) (err error) {
	if o.Dir == "" {
		parent := filepath.Join(root, "out", "lab-tests")
		if err := os.MkdirAll(parent, 0o755); err != nil {
			return err
		}
		if o.Dir, err = os.MkdirTemp(parent, fileName(name)+"-"); err != nil {
			return err
		}
	}
	if o.ID == 0 {
		o.ID = AnyID
	}
	if o.Binary == "" {
		o.Binary = filepath.Join(root, "bin", "atoll")
	}
	if o.Command == "" {
		o.Command = filepath.Join(root, "out", "bin", "lab")
		if err := BuildCommand(ctx, root, o.Command); err != nil {
			return err
		}
	}
	if o.Images == nil {
		if o.Images, err = images.Build(ctx, root, filepath.Join(root, "out", "images")); err != nil {
			return err
		}
	}
	o.Bound = true
	return nil
}

// Repository finds the folder that holds go.mod, from the working directory upwards.
func Repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no go.mod in the working directory or above")
		}
		dir = parent
	}
}

// CopyLogs copies what all nodes wrote, atoll's and PID 1's, to the folder to, as s1-n1.atoll.log and so on.
func (l *Lab) CopyLogs(to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	var problems []error
	for _, s := range l.Sites() {
		for _, n := range s.Nodes() {
			for _, name := range []string{"atoll.log", "init.log"} {
				data, err := os.ReadFile(filepath.Join(n.dir(), name))
				if errors.Is(err, os.ErrNotExist) {
					continue
				}
				if err == nil {
					err = os.WriteFile(filepath.Join(to, n.group()+"."+name), data, 0o644)
				}
				problems = append(problems, err)
			}
		}
	}
	return errors.Join(problems...)
}

// fileName makes a test's name fit for a file.
func fileName(test string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(`/\ :*?"<>|`, r) {
			return '_'
		}
		return r
	}, test)
}

// Within returns a context for one step of a test; when it ends, the error says what took too long.
func Within(d time.Duration, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.Background(), d, fmt.Errorf("%s took longer than %s", what, d))
}
