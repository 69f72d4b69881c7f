// Package process owns the settings that Kubernetes keeps once per process: logging, the exit hook, client warnings.
//
// Upstream's components were written to be alone in their process. What they share when several run in one, and cannot be told
// apart, is set here once, before the first of them is made; nothing else in the tree touches these globals.
package process

import (
	"context"
	"fmt"
	stdlog "log"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync/atomic"

	"github.com/sirupsen/logrus"
	"k8s.io/client-go/rest"
	"k8s.io/component-base/configz"
	"k8s.io/klog/v2"
)

// Config is what the embedded Kubernetes components have in common.
type Config struct {
	// Verbosity is klog's -v, for all components alike. At 0 their informational lines are debug lines of ours.
	Verbosity int
	// OnExit is told the reason when a component insists on ending the process. It should write down what it can; the process ends after it returns.
	OnExit func(code int, stack []byte)
}

// Logging is how the embedded components log.
type Logging struct {
	reclaim func()
	settled *atomic.Bool
}

// Reclaim makes Kubernetes log through ours again after something else (CoreDNS) has taken its logger for itself.
func (l Logging) Reclaim() { l.reclaim() }

// Settle ends the time of the start, in which components complain about each other not being there yet.
func (l Logging) Settle() { l.settled.Store(true) }

// Init applies cfg. Call it once, before any component is made.
// Until Logging.Settle is called, what the components call warnings and errors are debug lines: at a start they are about what is not
// there yet, and what does not come shows in the components' states.
func Init(cfg Config, log *slog.Logger) (Logging, error) {
	level := slog.LevelDebug
	if cfg.Verbosity > 0 {
		level = slog.LevelInfo
	}
	var v klog.Level
	if err := v.Set(fmt.Sprint(cfg.Verbosity)); err != nil {
		return Logging{}, fmt.Errorf("set log verbosity: %w", err)
	}
	logging := Logging{settled: &atomic.Bool{}}
	kube := slog.New(&handler{inner: log.Handler(), info: level, settled: logging.settled})
	logging.reclaim = func() { klog.SetSlogLogger(kube) }
	logging.reclaim()
	logging.settled.Store(cfg.Verbosity > 0)
	exit := klog.OsExit
	klog.OsExit = func(code int) {
		if cfg.OnExit != nil {
			cfg.OnExit(code, debug.Stack())
		}
		exit(code)
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{})

	// kine and parts of containerd's client log through logrus.
	logrus.SetOutput(writer{log: log.With("component", "datastore"), settled: logging.settled})
	logrus.SetFormatter(&logrus.TextFormatter{DisableTimestamp: true, DisableColors: true})
	if cfg.Verbosity == 0 {
		logrus.SetLevel(logrus.WarnLevel)
	}
	// CoreDNS logs through the standard logger.
	stdlog.SetFlags(0)
	stdlog.SetOutput(writer{log: log.With("component", "dns"), settled: logging.settled})
	return logging, nil
}

// Context returns ctx with a logger for the component of this name.
func Context(ctx context.Context, component string) context.Context {
	return klog.NewContext(ctx, klog.Background().WithValues("component", component))
}

// ForgetConfigz removes a component's entry from the registry behind /configz, so that the component can be started again.
func ForgetConfigz(name string) { configz.Delete(name) }

// handler lowers informational lines to the given level: an idle node is silent.
type handler struct {
	inner   slog.Handler
	info    slog.Level
	settled *atomic.Bool
}

func (h *handler) level(l slog.Level) slog.Level {
	switch {
	case l >= slog.LevelWarn && !h.settled.Load():
		return slog.LevelDebug
	case l >= slog.LevelError:
		// Upstream calls an error what it is about to retry; the components' own state says whether someone must act.
		return slog.LevelWarn
	case l >= slog.LevelWarn:
		return l
	default:
		return h.info
	}
}

func (h *handler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.inner.Enabled(ctx, h.level(l))
}

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	r.Level = h.level(r.Level)
	if !h.inner.Enabled(ctx, r.Level) {
		return nil
	}
	return h.inner.Handle(ctx, r)
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{inner: h.inner.WithAttrs(attrs), info: h.info, settled: h.settled}
}

func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{inner: h.inner.WithGroup(name), info: h.info, settled: h.settled}
}

// writer passes on lines of loggers that know no levels but write them into the text.
type writer struct {
	log     *slog.Logger
	settled *atomic.Bool
}

func (w writer) Write(p []byte) (int, error) {
	line := strings.TrimSpace(string(p))
	for _, quiet := range []string{"level=info", "level=debug", "[INFO]", "[DEBUG]"} {
		if strings.HasPrefix(line, quiet) {
			w.log.Debug(line)
			return len(p), nil
		}
	}
	if !w.settled.Load() {
		w.log.Debug(line)
		return len(p), nil
	}
	w.log.Warn(line)
	return len(p), nil
}
