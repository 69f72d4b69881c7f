// Package kubelet runs upstream's kubelet, unchanged, as a component of this process.
//
// The kubelet can be neither stopped nor started again inside a process: give it run.Lingers. A change of its settings needs a
// restart of the process, which no pod notices.
package kubelet

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/spf13/pflag"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/apis/config/validation"
	"k8s.io/kubernetes/pkg/kubelet/kubeletconfig/configfiles"
	utilfs "k8s.io/kubernetes/pkg/util/filesystem"

	"github.com/atollhq/atoll/pkg/kube/process"
	"github.com/atollhq/atoll/pkg/remedy"
)

// Config is what the kubelet needs from the node.
type Config struct {
	ConfigFile string       // KubeletConfiguration, kubelet.config.k8s.io/v1beta1
	Args       process.Args // flags that have no field in the file
	UserArgs   []string     // --kubelet-arg; win over file and Args
}

// New returns the component. It is ready when its health endpoint answers.
func New(cfg Config, log *slog.Logger) *Kubelet { return &Kubelet{cfg: cfg, log: log} }

// Kubelet is the node's kubelet.
type Kubelet struct {
	cfg Config
	log *slog.Logger
}

// Name implements run.Component.
func (*Kubelet) Name() string { return "kubelet" }

// Run implements run.Component, except that goroutines stay behind when it returns.
func (k *Kubelet) Run(ctx context.Context, ready func()) error {
	ctx = process.Context(ctx, k.Name())
	server, err := k.load(ctx)
	if err != nil {
		return err
	}
	deps, err := app.UnsecuredDependencies(ctx, server, utilfeature.DefaultFeatureGate)
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	if err := keepCSI(ctx, server.HostnameOverride, server.KubeConfig); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	go process.AwaitHealthy(ctx, fmt.Sprintf("http://%s:%d/healthz", server.HealthzBindAddress, server.HealthzPort), ready)
	return app.Run(ctx, server, deps, utilfeature.DefaultFeatureGate)
}

// load merges defaults, file and arguments in upstream's order: what the user gave last wins.
func (k *Kubelet) load(ctx context.Context) (*options.KubeletServer, error) {
	loader, err := configfiles.NewFsLoader(&utilfs.DefaultFs{}, k.cfg.ConfigFile)
	if err != nil {
		return nil, err
	}
	config, err := loader.Load(ctx)
	if err != nil {
		return nil, err
	}
	flags := options.NewKubeletFlags()
	if err := parse(flags, config, k.cfg.Args, k.cfg.UserArgs); err != nil {
		return nil, err
	}
	if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(config.FeatureGates); err != nil {
		return nil, fmt.Errorf("set feature gates: %w", err)
	}
	if err := options.ValidateKubeletFlags(flags); err != nil {
		return nil, remedy.Wrap(err, "check --kubelet-arg")
	}
	if err := validation.ValidateKubeletConfiguration(config, utilfeature.DefaultFeatureGate); err != nil {
		return nil, remedy.Wrap(err, "check --kubelet-arg")
	}
	return &options.KubeletServer{KubeletFlags: *flags, KubeletConfiguration: *config}, nil
}

func parse(flags *options.KubeletFlags, config *kubeletconfig.KubeletConfiguration, args process.Args, user []string) error {
	fs := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	flags.AddFlags(fs)
	options.AddKubeletConfigFlags(fs, config)
	fs.Init("kubelet", pflag.ContinueOnError)
	_, err := process.Parse("kubelet", args.With(user), cliflag.NamedFlagSets{Order: []string{"kubelet"}, FlagSets: map[string]*pflag.FlagSet{"kubelet": fs}})
	return err
}
