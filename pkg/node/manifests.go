package node

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/atollhq/atoll/manifests"
	"github.com/atollhq/atoll/pkg/deploy"
)

// manifestsPart brings the site's own objects and the owner's manifests into the cluster. It is the one part that is an administrator,
// because manifests may contain anything.
func (n *Node) manifestsPart() (*deploy.Manifests, error) {
	admin, err := clientcmd.BuildConfigFromFlags("", n.paths.AdminKubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", n.paths.AdminKubeconfig, err)
	}
	admin.QPS, admin.Burst = 50, 100
	authority, err := os.ReadFile(n.paths.ServerCA.Cert)
	if err != nil {
		return nil, err
	}
	return deploy.New(deploy.Config{
		Client: admin, Node: n.cfg.NodeName, Folder: n.paths.manifests, IdentityFile: filepath.Join(n.paths.ServerCred, "disk-id"),
		Packaged: manifests.Files,
		Values: map[string]string{
			"CLUSTER_DNS": n.cfg.DNSAddress().String(), "CLUSTER_DOMAIN": n.cfg.ClusterDomain,
			"SERVER_CA": base64.StdEncoding.EncodeToString(authority),
		},
		Disabled: func(name string) bool { return slices.Contains(n.cfg.Disable, name) },
	}, n.log), nil
}
