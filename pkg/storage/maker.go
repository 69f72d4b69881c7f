package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/atollhq/atoll/pkg/remedy"
)

const (
	selectedNode = "volume.kubernetes.io/selected-node" // annotation of the scheduler on a claim
	perNamespace = "perNamespace"                       // class parameter
)

var everything = labels.Everything()

// maker is what the provisioner library calls: controller.Provisioner, Qualifier and DeletionGuard.
type maker struct {
	node    string
	client  kubernetes.Interface
	folders *folders
	events  record.EventRecorder
	removed chan<- struct{} // tells that there is something to delete for good
	log     *slog.Logger

	mu    sync.Mutex
	moved map[string]time.Time // claims, by UID, that were sent back to the scheduler
}

// ShouldProvision implements controller.Qualifier: only claims that the scheduler placed on this node.
func (m *maker) ShouldProvision(_ context.Context, claim *corev1.PersistentVolumeClaim) bool {
	return claim.Annotations[selectedNode] == m.node
}

// ShouldDelete implements controller.DeletionGuard: only volumes whose folder is on this node.
func (m *maker) ShouldDelete(_ context.Context, pv *corev1.PersistentVolume) bool {
	return pv.Annotations[nodeAnnotation] == m.node
}

// Provision implements controller.Provisioner. A claim that can never be satisfied is refused with an event and not tried again
// until it is looked at anew (15 min); everything else is tried again with growing pauses.
func (m *maker) Provision(ctx context.Context, o controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	if err := refusal(o); err != nil {
		m.events.Event(o.PVC, corev1.EventTypeWarning, "ProvisioningFailed", sentence(err))
		m.log.Warn("volume refused", "claim", o.PVC.Namespace+"/"+o.PVC.Name, "err", err)
		return nil, controller.ProvisioningFinished, &controller.IgnoredError{Reason: err.Error()}
	}
	size := o.PVC.Spec.Resources.Requests[corev1.ResourceStorage]
	if err := m.folders.roomFor(size.Value()); err != nil {
		return nil, m.elsewhere(o.PVC), errors.New(sentence(err))
	}
	host, err := m.hostLabel(ctx)
	if err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	name := filepath.Join(subfolder(o), folderName(o.PVName, o.PVC.Namespace, o.PVC.Name))
	path, err := m.folders.create(name)
	if err != nil {
		err = remedy.Wrap(fmt.Errorf("make a folder for volume %s on node %s: %w", o.PVName, m.node, err), "check that %s on that node is writable and its disk is in order", m.folders.base)
		return nil, controller.ProvisioningFinished, errors.New(sentence(err))
	}
	m.log.Info("volume made", "volume", o.PVName, "claim", o.PVC.Namespace+"/"+o.PVC.Name, "path", path)
	return volumeObject(o, path, m.node, host), controller.ProvisioningFinished, nil
}

// refusal returns why a claim can never get a local volume, or nil.
func refusal(o controller.ProvisionOptions) error {
	for _, mode := range o.PVC.Spec.AccessModes {
		if mode != corev1.ReadWriteOnce && mode != corev1.ReadWriteOncePod {
			return remedy.Wrap(fmt.Errorf("a local volume is a folder on one node and cannot be %s", mode), "ask for ReadWriteOnce, or use a class with shared storage")
		}
	}
	if mode := o.PVC.Spec.VolumeMode; mode != nil && *mode != corev1.PersistentVolumeFilesystem {
		return remedy.Wrap(fmt.Errorf("a local volume is a folder and cannot be a %s device", *mode), "ask for volumeMode Filesystem")
	}
	if o.PVC.Spec.DataSource != nil || o.PVC.Spec.DataSourceRef != nil {
		return remedy.Wrap(errors.New("a local volume cannot begin as a copy of something else"), "remove dataSource, and copy the data with a pod")
	}
	if o.PVC.Spec.Selector != nil {
		return remedy.Wrap(errors.New("a claim with a selector wants a volume that exists already"), "remove the selector, or set storageClassName to \"\"")
	}
	for name, value := range o.StorageClass.Parameters {
		if name != perNamespace || (value != "true" && value != "false") {
			return remedy.Wrap(fmt.Errorf("class %s has the parameter %s: %q", o.StorageClass.Name, name, value), "make the class again; the only parameter is %s: \"true\" or \"false\"", perNamespace)
		}
	}
	return nil
}

func subfolder(o controller.ProvisionOptions) string {
	if o.StorageClass.Parameters[perNamespace] == "true" {
		return o.PVC.Namespace
	}
	return ""
}

// elsewhere decides what happens to a claim that this node has no room for. It goes back to the scheduler, which may know a
// better node; but the scheduler does not know about space and may choose this one again, and each turn is a write. So once in
// ten minutes; in between it is tried again here.
func (m *maker) elsewhere(claim *corev1.PersistentVolumeClaim) controller.ProvisioningState {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for uid, at := range m.moved {
		if now.Sub(at) > 10*time.Minute {
			delete(m.moved, uid)
		}
	}
	if _, recently := m.moved[string(claim.UID)]; recently {
		return controller.ProvisioningFinished
	}
	m.moved[string(claim.UID)] = now
	return controller.ProvisioningReschedule
}

// hostLabel returns the label that the volume's affinity asks for. It is the node's name, unless somebody changed it.
func (m *maker) hostLabel(ctx context.Context) (string, error) {
	node, err := m.client.CoreV1().Nodes().Get(ctx, m.node, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("read node %s: %w", m.node, err)
	}
	if host := node.Labels[corev1.LabelHostname]; host != "" {
		return host, nil
	}
	return m.node, nil
}

func volumeObject(o controller.ProvisionOptions, path, node, host string) *corev1.PersistentVolume {
	mode := corev1.PersistentVolumeFilesystem
	policy := corev1.PersistentVolumeReclaimDelete
	if o.StorageClass.ReclaimPolicy != nil {
		policy = *o.StorageClass.ReclaimPolicy
	}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: o.PVName, Annotations: map[string]string{nodeAnnotation: node}},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: policy,
			AccessModes:                   slices.Clone(o.PVC.Spec.AccessModes),
			VolumeMode:                    &mode,
			MountOptions:                  o.StorageClass.MountOptions,
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: o.PVC.Spec.Resources.Requests[corev1.ResourceStorage]},
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{host}}},
			}}}},
		},
	}
}

// Delete implements controller.Provisioner. When it returns nil the folder is out of the way for good.
func (m *maker) Delete(_ context.Context, pv *corev1.PersistentVolume) error {
	if pv.Spec.Local == nil {
		return &controller.IgnoredError{Reason: "it is not a local volume"}
	}
	found, err := m.folders.remove(pv.Name, pv.Spec.Local.Path)
	if err != nil {
		return errors.New(sentence(fmt.Errorf("remove volume %s: %w", pv.Name, err)))
	}
	m.log.Info("volume removed", "volume", pv.Name, "path", pv.Spec.Local.Path, "had folder", found)
	select {
	case m.removed <- struct{}{}:
	default: // somebody is about to look anyway
	}
	return nil
}
