package kubelet

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletv1beta1 "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"
)

// Settings is what a node decides about its kubelet.
type Settings struct {
	ContainerdSocket      string
	ClusterDNS            string
	ClusterDomain         string
	ResolvConf            string
	ClientCA              string // authority of those who may call the kubelet
	CertFile, KeyFile     string // serving pair, reloaded when the files change
	StaticPodDir          string
	VolumePluginDir       string
	SystemdCgroup         bool
	GracefulShutdown      bool // the init system announces shutdowns (logind)
	ProtectKernelDefaults bool
}

// File renders Settings as the kubelet's configuration file. What is not named has upstream's default.
func (s Settings) File() ([]byte, error) {
	yes, no := true, false
	driver := "cgroupfs"
	if s.SystemdCgroup {
		driver = "systemd"
	}
	c := kubeletv1beta1.KubeletConfiguration{
		TypeMeta:                 metav1.TypeMeta{APIVersion: kubeletv1beta1.SchemeGroupVersion.String(), Kind: "KubeletConfiguration"},
		ContainerRuntimeEndpoint: "unix://" + s.ContainerdSocket,
		CgroupDriver:             driver,
		FailCgroupV1:             &no,
		FailSwapOn:               &no,
		ClusterDNS:               []string{s.ClusterDNS},
		ClusterDomain:            s.ClusterDomain,
		ResolverConfig:           &s.ResolvConf,
		StaticPodPath:            s.StaticPodDir,
		VolumePluginDir:          s.VolumePluginDir,
		HealthzBindAddress:       "127.0.0.1",
		TLSCertFile:              s.CertFile,
		TLSPrivateKeyFile:        s.KeyFile,
		RotateCertificates:       false, // the node renews its certificates itself, by file
		Authentication: kubeletv1beta1.KubeletAuthentication{
			X509:      kubeletv1beta1.KubeletX509Authentication{ClientCAFile: s.ClientCA},
			Webhook:   kubeletv1beta1.KubeletWebhookAuthentication{Enabled: &yes, CacheTTL: metav1.Duration{Duration: 2 * time.Minute}},
			Anonymous: kubeletv1beta1.KubeletAnonymousAuthentication{Enabled: &no},
		},
		Authorization:         kubeletv1beta1.KubeletAuthorization{Mode: kubeletv1beta1.KubeletAuthorizationModeWebhook},
		ProtectKernelDefaults: s.ProtectKernelDefaults,
		SeccompDefault:        &yes,
		SerializeImagePulls:   &no,
		// The OOM score belongs to the whole process, and lowering it needs a capability that containers lack.
		OOMScoreAdj: new(int32),
		// Shares of a shop's small disk, as K3s has them: upstream's 10 and 15 % of a full 32 GB card would evict for nothing.
		EvictionHard: map[string]string{
			"memory.available": "100Mi", "nodefs.available": "5%", "nodefs.inodesFree": "5%", "imagefs.available": "5%", "imagefs.inodesFree": "5%",
		},
		EvictionMinimumReclaim: map[string]string{"nodefs.available": "10%", "imagefs.available": "10%"},
		// With upstream's 5 min a shop whose disk has room again would wait that long for its pods.
		EvictionPressureTransitionPeriod: metav1.Duration{Duration: 30 * time.Second},
	}
	if s.GracefulShutdown {
		c.ShutdownGracePeriod = metav1.Duration{Duration: 30 * time.Second}
		c.ShutdownGracePeriodCriticalPods = metav1.Duration{Duration: 10 * time.Second}
	}
	data, err := yaml.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("render the kubelet's configuration: %w", err)
	}
	return append([]byte("# Written by atoll at each start. Settings of your own go into --kubelet-arg.\n"), data...), nil
}
