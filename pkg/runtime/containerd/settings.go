package containerd

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/template"

	"github.com/urfave/cli/v2"
)

// Settings is what the daemon's configuration file says. All paths are absolute.
type Settings struct {
	Root           string // images and snapshots
	State          string // running containers; lost at a reboot
	Socket         string
	Shim, Runc     string // programs carried with atoll
	CNIBin         string
	CNIConf        string
	RegistryConfig string // folder of hosts.toml files
	OptDir         string
	PauseImage     string
	Snapshotter    string // overlayfs or native
	SystemdCgroup  bool
	RestrictOOM    bool // the process may not lower OOM scores (no CAP_SYS_RESOURCE)
	LogLevel       string
	ImportGlob     string // further TOML files of the user
}

var configTemplate = template.Must(template.New("config.toml").Parse(`# Written by atoll at each start. Put settings of your own into {{.ImportGlob}}
version = 3
root = {{printf "%q" .Root}}
state = {{printf "%q" .State}}
imports = [{{printf "%q" .ImportGlob}}]
oom_score = 0
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.image-verifier.v1.bindir"]

[grpc]
  address = {{printf "%q" .Socket}}
[ttrpc]
  address = {{printf "%q" (print .Socket ".ttrpc")}}
[debug]
  level = {{printf "%q" .LogLevel}}
[metrics]
  address = ""

[plugins."io.containerd.internal.v1.opt"]
  path = {{printf "%q" .OptDir}}

[plugins."io.containerd.gc.v1.scheduler"]
  startup_delay = "1s"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = {{printf "%q" .Snapshotter}}
  disable_snapshot_annotations = true
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = {{printf "%q" .PauseImage}}
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = {{printf "%q" .RegistryConfig}}

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = {{.RestrictOOM}}
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  device_ownership_from_security_context = false
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [{{printf "%q" .CNIBin}}]
    conf_dir = {{printf "%q" .CNIConf}}
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      runtime_path = {{printf "%q" .Shim}}
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = {{printf "%q" .Runc}}
        SystemdCgroup = {{.SystemdCgroup}}

[plugins."io.containerd.grpc.v1.cri"]
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
`))

// TOML renders the daemon's configuration file.
func (s Settings) TOML() ([]byte, error) {
	var out bytes.Buffer
	if err := configTemplate.Execute(&out, s); err != nil {
		return nil, fmt.Errorf("render containerd's configuration: %w", err)
	}
	return out.Bytes(), nil
}

// MayLowerOOMScore tells whether this process may set a lower oom_score_adj than its own, which needs CAP_SYS_RESOURCE.
// Without it every pod sandbox would fail, because the pause container asks for -998.
func MayLowerOOMScore() bool {
	const capSysResource = 24
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			var caps uint64
			if _, err := fmt.Sscanf(strings.TrimSpace(hex), "%x", &caps); err != nil {
				return false
			}
			return caps&(1<<capSysResource) != 0
		}
	}
	return false
}

func setDefault(f cli.Flag, name, value string) {
	if s, ok := f.(*cli.StringFlag); ok && slices.Contains(s.Names(), name) {
		s.Value = value
	}
}
