package node

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/atollhq/atoll/pkg/atomicfile"
	"github.com/atollhq/atoll/pkg/config"
)

// auditPolicy keeps who changed what. It leaves out reads, the heartbeats of nodes and leases, and the content of secrets:
// a shop's flash pays for every line.
const auditPolicy = `# Written by atoll at each start; another one is named with --audit-policy-file.
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: None
    verbs: [get, list, watch]
  - level: None
    resources:
      - {group: coordination.k8s.io, resources: [leases]}
      - {group: "", resources: [events]}
      - {group: events.k8s.io, resources: [events]}
      - {group: authentication.k8s.io, resources: [tokenreviews]}
      - {group: authorization.k8s.io, resources: [subjectaccessreviews, localsubjectaccessreviews, selfsubjectaccessreviews]}
  - level: None
    userGroups: ["system:nodes"]
    resources:
      - {group: "", resources: [nodes/status, pods/status, serviceaccounts/token]}
  - level: None
    users: ["system:kube-controller-manager", "system:kube-scheduler", "system:apiserver"]
    resources:
      - {group: "", resources: [endpoints, pods/binding, serviceaccounts/token]}
      - {group: discovery.k8s.io, resources: [endpointslices]}
  - level: Metadata
`

// admissionConfig sets what namespaces are held to that say nothing themselves. Exec into pods and the like are not its business.
func admissionConfig(level string) string {
	return fmt.Sprintf(`# Written by atoll at each start; the level is set with --pod-security.
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
  - name: PodSecurity
    configuration:
      apiVersion: pod-security.admission.config.k8s.io/v1
      kind: PodSecurityConfiguration
      defaults:
        enforce: %[1]q
        enforce-version: latest
        audit: %[1]q
        audit-version: latest
        warn: %[1]q
        warn-version: latest
      exemptions:
        namespaces: [kube-system]
`, level)
}

// writeServerFiles writes what the API server reads at its start.
func writeServerFiles(cfg config.Config, p paths) error {
	for _, dir := range []string{filepath.Dir(p.auditPolicy), filepath.Dir(p.auditLog), p.manifests} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
	}
	if _, err := atomicfile.WriteIfChanged(p.auditPolicy, []byte(auditPolicy), 0o600); err != nil {
		return err
	}
	_, err := atomicfile.WriteIfChanged(p.admission, []byte(admissionConfig(cfg.PodSecurity)), 0o600)
	return err
}

// WriteServerFiles writes the files that the API server of a node with these settings reads, for the benchmark.
func WriteServerFiles(cfg config.Config) error { return writeServerFiles(cfg, newPaths(cfg.DataDir)) }
