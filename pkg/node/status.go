package node

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/run"
	"github.com/atollhq/atoll/pkg/status"
	"github.com/atollhq/atoll/pkg/version"
)

// startPatience is how long a component may take before that is a problem of its own.
const startPatience = time.Minute

// statusPage is the component that answers `atoll status`. It comes first and needs nothing, so that it can tell about a node
// that does not get any further.
func (n *Node) statusPage(began time.Time) run.Component {
	return status.New(StatusSocket, func(ctx context.Context) status.Report { return n.report(ctx, began) }, n.log)
}

func (n *Node) report(ctx context.Context, began time.Time) status.Report {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	r := status.Report{
		Node: n.cfg.NodeName, Role: string(n.cfg.Role), Version: version.Version, Address: n.addr.String(),
		Since: began, Now: time.Now(), Components: n.components(),
	}
	r.Problems = append(r.Problems, diskProblems(n.cfg.DataDir)...)
	for _, p := range n.pkiProblems() {
		r.Problems = append(r.Problems, status.Problem{Severity: status.Degraded, Text: p.Text, Remedy: p.Remedy})
	}
	r.Problems = append(r.Problems, status.OfComponents(r.Components, r.Now, startPatience)...)
	for _, source := range n.troubles {
		for _, err := range source() {
			r.Problems = append(r.Problems, status.FromError(status.Degraded, err))
		}
	}
	if _, ok := addressOfDefaultRoute(); !ok {
		r.Problems = append(r.Problems, status.Problem{Severity: status.Note, Text: "there is no default route: nothing outside the LAN is reachable", Remedy: "check the router and its cable if the site should be online"})
	}
	r.Problems = append(r.Problems, n.clusterProblems(ctx, &r)...)
	r.Problems = append(r.Problems, n.host...)
	r.Conclude()
	return r
}

// components lists all parts, those of a joined agent in the place of the part that runs them.
func (n *Node) components() []run.Status {
	parts := n.group.Status()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.member != nil {
		parts = append(parts, n.member.Status()...)
	}
	return parts
}

func (n *Node) pkiProblems() []pki.Problem {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pkiNow
}

// diskProblems tells about a data folder that is nearly full or cannot be written.
func diskProblems(dir string) []status.Problem {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return []status.Problem{{Severity: status.Failing, Text: fmt.Sprintf("the data folder %s cannot be read: %v", dir, err), Remedy: "check the disk: `dmesg` names its errors"}}
	}
	free, total := fs.Bavail*uint64(fs.Bsize), fs.Blocks*uint64(fs.Bsize) //nolint:gosec // block sizes are positive
	switch {
	case fs.Flags&unix.ST_RDONLY != 0:
		return []status.Problem{{Severity: status.Failing, Text: "the disk of " + dir + " is read-only", Remedy: "check the disk: `dmesg` names its errors; then mount it writable"}}
	case free < 64<<20:
		return []status.Problem{{Severity: status.Failing, Text: fmt.Sprintf("the disk of %s is full", dir), Remedy: "delete what is not needed; `du -xh --max-depth=2 " + dir + "` shows what takes the space"}}
	case free < total/20:
		return []status.Problem{{Severity: status.Degraded, Text: fmt.Sprintf("the disk of %s has only %d MiB left of %d", dir, free>>20, total>>20), Remedy: "delete what is not needed before pods are evicted"}}
	case fs.Files > 0 && fs.Ffree < fs.Files/50:
		return []status.Problem{{Severity: status.Degraded, Text: "the disk of " + dir + " has hardly any inodes left", Remedy: "delete folders with very many small files"}}
	}
	return nil
}

// clusterProblems asks the API about this node and its pods.
func (n *Node) clusterProblems(ctx context.Context, r *status.Report) []status.Problem {
	n.mu.Lock()
	client := n.asKubelet
	n.mu.Unlock()
	if client == nil {
		return nil
	}
	node, err := client.CoreV1().Nodes().Get(ctx, n.cfg.NodeName, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return []status.Problem{{Severity: status.Failing, Text: fmt.Sprintf("the Kubernetes API does not know this node: %v", err), Remedy: "if the parts below are starting, wait; pods that ran before go on running"}}
	}
	var out []status.Problem
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			out = append(out, status.Problem{Severity: status.Failing, Text: "the node is not Ready: " + c.Message, Remedy: "see the parts below; `journalctl -u atoll -e` has the details"})
		}
		if c.Type != corev1.NodeReady && c.Status == corev1.ConditionTrue {
			out = append(out, status.Problem{Severity: status.Degraded, Text: fmt.Sprintf("%s: %s", c.Type, c.Message), Remedy: "free what is short, or move pods away; new pods are not placed here until then"})
		}
	}
	if node.Spec.Unschedulable {
		out = append(out, status.Problem{Severity: status.Note, Text: "the node is cordoned: no new pods are placed here", Remedy: "`atoll kubectl uncordon " + node.Name + "` when work on it is done"})
	}
	pods, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", n.cfg.NodeName).String(), ResourceVersion: "0",
	})
	if err == nil {
		r.Pods = countPods(pods.Items)
	}
	return out
}

func countPods(pods []corev1.Pod) *status.Pods {
	var p status.Pods
	for _, pod := range pods {
		switch pod.Status.Phase {
		case corev1.PodSucceeded:
			continue
		case corev1.PodFailed:
			p.Failed++
			continue
		case corev1.PodRunning:
			p.Running++
		case corev1.PodPending, corev1.PodUnknown:
			p.Waiting++
		}
		if !podReady(&pod) && len(p.NotReady) < 10 {
			p.NotReady = append(p.NotReady, pod.Namespace+"/"+pod.Name)
		}
	}
	return &p
}

func podReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
