// Package controllers runs upstream's kube-controller-manager and kube-scheduler in this process.
//
// Both can be stopped and started again any number of times: they run without upstream's own leader election, as the work of
// ours (package election), and return when their context ends.
package controllers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	kcmapp "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	schedulerapp "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"

	"github.com/atollhq/atoll/pkg/kube/process"
)

// ErrStuck is returned when controllers did not stop in time, or left behind what keeps them from being started again.
// The process must end.
var ErrStuck = errors.New("controllers cannot be started again in this process")

// Stuck tells whether err means that the process must end.
func Stuck(err error) bool { return errors.Is(err, ErrStuck) }

// Manager returns a function that runs kube-controller-manager with these arguments until its context ends.
func Manager(args process.Args, userArgs []string) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx = process.Context(ctx, "kube-controller-manager")
		process.ForgetConfigz(kcmapp.ConfigzName)
		opts, err := kcmoptions.NewKubeControllerManagerOptions()
		if err != nil {
			return err
		}
		known, disabled, aliases := kcmapp.KnownControllers(), kcmapp.ControllersDisabledByDefault(), kcmapp.ControllerAliases()
		if _, err := process.Parse("kube-controller-manager", args.With(userArgs), opts.Flags(known, disabled, aliases)); err != nil {
			return err
		}
		cfg, err := opts.Config(ctx, known, disabled, aliases)
		if err != nil {
			return fmt.Errorf("configure kube-controller-manager: %w", err)
		}
		// Upstream waits ten seconds for the API and then fails for good: the names of its informers stay taken.
		if err := awaitAPI(ctx, cfg.Client.Discovery().RESTClient()); err != nil {
			return err
		}
		began := time.Now()
		err = kcmapp.Run(ctx, cfg.Complete())
		if err != nil && strings.Contains(err.Error(), "is already registered") {
			return errors.Join(ErrStuck, err)
		}
		if err != nil && ctx.Err() != nil && time.Since(began) > time.Second {
			return errors.Join(ErrStuck, err)
		}
		return err
	}
}

// awaitAPI returns when the API server says that it is healthy, or ctx has ended.
func awaitAPI(ctx context.Context, client rest.Interface) error {
	for {
		if _, err := client.Get().AbsPath("/healthz").Timeout(2 * time.Second).DoRaw(ctx); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Scheduler returns a function that runs kube-scheduler with these arguments until its context ends.
func Scheduler(args process.Args, userArgs []string) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx = process.Context(ctx, "kube-scheduler")
		process.ForgetConfigz("componentconfig")
		opts := scheduleroptions.NewOptions()
		if _, err := process.Parse("kube-scheduler", args.With(userArgs), *opts.Flags); err != nil {
			return err
		}
		completed, sched, err := schedulerapp.Setup(ctx, opts)
		if err != nil {
			return fmt.Errorf("configure kube-scheduler: %w", err)
		}
		err = schedulerapp.Run(ctx, completed, sched)
		if ctx.Err() != nil {
			return nil // without upstream's election, Run ends with an error even after a stop that was asked for
		}
		return err
	}
}
