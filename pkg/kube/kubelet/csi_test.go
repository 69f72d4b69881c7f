package kubelet

import (
	"testing"

	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/kubernetes/pkg/volume/csi"
)

// TestOwnerOfCSIIsSeen holds a field of upstream's in place that is not exported.
func TestOwnerOfCSIIsSeen(t *testing.T) {
	host := csiHost{node: "n1", client: fake.NewClientset()}
	ours := claimCSI(host)
	if ours == 0 || ours != csiOwner() {
		t.Fatalf("owner after a claim: %d, then %d", ours, csiOwner())
	}
	for _, p := range csi.ProbeVolumePlugins() { // as the controller-manager does
		if err := p.Init(csiHost{client: host.client}); err != nil {
			t.Fatal(err)
		}
	}
	if csiOwner() == ours {
		t.Error("another's claim is not seen")
	}
	if again := claimCSI(host); again == ours || again != csiOwner() {
		t.Errorf("owner after the second claim: %d, then %d", again, csiOwner())
	}
}
