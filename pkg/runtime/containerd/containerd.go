// Package containerd runs the container runtime as a child process of the same binary, and loads images into it.
//
// The daemon is a child so that its memory shares the binary's pages and its restart is independent of Kubernetes' parts. The shims
// that hold running containers are not children of either: pods outlive a restart of atoll and of the daemon.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/atollhq/atoll/pkg/atomicfile"
)

// Config is what the daemon needs from the node.
type Config struct {
	Settings   Settings
	Executable string // the atoll binary
	ConfigFile string // where the daemon's configuration is written
	LogFile    string
	Path       string // PATH of the daemon and so of shims, runc and CNI plugins
}

// New returns the component. It is ready when it answers for pods.
func New(cfg Config, log *slog.Logger) *Daemon { return &Daemon{cfg: cfg, log: log} }

// Daemon is the node's containerd.
type Daemon struct {
	cfg Config
	log *slog.Logger
}

// Name implements run.Component.
func (*Daemon) Name() string { return "containerd" }

// Run implements run.Component.
func (d *Daemon) Run(ctx context.Context, ready func()) error {
	for _, dir := range []string{d.cfg.Settings.Root, d.cfg.Settings.State, filepath.Dir(d.cfg.ConfigFile), filepath.Dir(d.cfg.LogFile), filepath.Dir(d.cfg.Settings.Socket), d.cfg.Settings.OptDir, d.cfg.Settings.CNIConf} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("make containerd's folder: %w", err)
		}
	}
	toml, err := d.cfg.Settings.TOML()
	if err != nil {
		return err
	}
	if _, err := atomicfile.WriteIfChanged(d.cfg.ConfigFile, toml, 0o600); err != nil {
		return err
	}
	logFile, err := openLog(d.cfg.LogFile)
	if err != nil {
		return err
	}
	defer logFile.Close()

	cmd := exec.Command(d.cfg.Executable, "containerd", "--config", d.cfg.ConfigFile)
	cmd.Env = append(withoutPath(os.Environ()), "PATH="+d.cfg.Path, "GOGC=50")
	cmd.Stdout, cmd.Stderr = logFile, logFile
	// The daemon must not outlive this process: the next one would fight it for its database.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}

	exited := make(chan error, 1)
	started := make(chan error, 1)
	go func() {
		// The death signal is tied to the thread that made the child, so that thread has to live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			exited <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	go d.signalReady(ctx, ready)
	select {
	case err := <-exited:
		return fmt.Errorf("containerd ended: %w; its last words: %s", orNil(err), lastLine(d.cfg.LogFile))
	case <-ctx.Done():
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-exited:
	case <-time.After(4 * time.Second):
		_ = cmd.Process.Kill()
		<-exited
	}
	return nil
}

// signalReady waits until the daemon answers for pods. Its socket accepts connections before that, and a kubelet that is told
// "not initialized yet" gives up.
func (d *Daemon) signalReady(ctx context.Context, ready func()) {
	conn, err := grpc.NewClient("unix://"+d.cfg.Settings.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()), // a socket for root alone
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1, MaxDelay: 20 * time.Millisecond}, MinConnectTimeout: time.Second}))
	if err != nil {
		d.log.Error("cannot ask containerd whether it is ready", "err", err)
		return
	}
	defer conn.Close()
	client := cri.NewRuntimeServiceClient(conn)
	for ctx.Err() == nil {
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := client.Version(attempt, &cri.VersionRequest{})
		cancel()
		if err == nil {
			ready()
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func orNil(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

func withoutPath(env []string) []string {
	out := make([]string, 0, len(env)+2)
	for _, e := range env {
		if !strings.HasPrefix(e, "PATH=") && !strings.HasPrefix(e, "NOTIFY_SOCKET=") {
			out = append(out, e)
		}
	}
	return out
}

// maxLog is the size in bytes at which a daemon log from earlier starts is set aside; one old file is kept.
const maxLog = 16 << 20

func openLog(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, fmt.Errorf("rotate containerd's log: %w", err)
		}
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

// lastLine returns the end of a log for an error message, or "".
func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const tail = 2048
	if info, err := f.Stat(); err == nil && info.Size() > tail {
		_, _ = f.Seek(-tail, io.SeekEnd)
	}
	data, _ := io.ReadAll(io.LimitReader(f, tail))
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return lines[len(lines)-1]
}
