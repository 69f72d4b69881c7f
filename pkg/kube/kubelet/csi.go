package kubelet

import (
	"context"
	"reflect"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/csi"
)

// Upstream keeps in one global of package csi who registers drivers of this node, and under which name. The kubelet sets it, and so
// does the controller-manager, which knows no name, whenever it begins to work. In one process the last one wins: the kubelet then
// fails with "resource name may not be empty", the node is not Ready, and after two minutes the kubelet ends the process.
// So whenever the global was set, it is set again to what the kubelet needs.
const (
	csiLookSoon  = 10 * time.Millisecond // while kubelet and controllers start
	csiLookOften = time.Second           // afterwards: controllers may begin again, drivers may register
	csiSoon      = time.Minute
)

// csiHost is all that the registration of drivers asks its host for.
type csiHost struct {
	volume.VolumeHost // nil: nothing else is asked
	node              types.NodeName
	client            kubernetes.Interface
}

func (h csiHost) GetNodeName() types.NodeName         { return h.node }
func (h csiHost) GetKubeClient() kubernetes.Interface { return h.client }

// keepCSI sees to it until ctx ends.
func keepCSI(ctx context.Context, node, kubeconfig string) error {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	host := csiHost{node: types.NodeName(node), client: client}
	go func() {
		began, tick := time.Now(), time.NewTicker(csiLookSoon)
		defer tick.Stop()
		for last := csiOwner(); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if now := csiOwner(); now != last {
				last = claimCSI(host)
			}
			if !began.IsZero() && time.Since(began) > csiSoon {
				began = time.Time{}
				tick.Reset(csiLookOften)
			}
		}
	}()
	return nil
}

// claimCSI sets the global and returns its new owner.
func claimCSI(host csiHost) uintptr {
	for _, p := range csi.ProbeVolumePlugins() {
		_ = p.Init(host) // fails only for a kubelet's host, which this is not
	}
	return csiOwner()
}

// csiOwner tells who set the global last: a value to compare.
func csiOwner() uintptr {
	return reflect.ValueOf(csi.PluginHandler).Elem().FieldByName("csiPlugin").Pointer()
}
