package cni_test

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/atollhq/atoll/pkg/network/cni"
)

func TestConfIsValidJSONWithTheRange(t *testing.T) {
	data, err := cni.Conf(netip.MustParsePrefix("10.42.3.0/24"), 1450, "/run/x", "/run/p.sock")
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Plugins []struct {
			Type string `json:"type"`
			MTU  int    `json:"mtu"`
			IPAM struct {
				DataDir string                `json:"dataDir"`
				Ranges  [][]map[string]string `json:"ranges"`
			} `json:"ipam"`
		} `json:"plugins"`
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if last := got.Plugins[len(got.Plugins)-1]; last.Type != "atoll-policy" {
		t.Errorf("the policy plugin is not last: %s", data)
	}
	p := got.Plugins[0]
	if p.Type != "ptp" || p.MTU != 1450 || p.IPAM.DataDir != "/run/x" || p.IPAM.Ranges[0][0]["subnet"] != "10.42.3.0/24" {
		t.Errorf("unexpected configuration:\n%s", data)
	}
}

func TestConfRefusesWhatIsNoIPv4Range(t *testing.T) {
	for _, p := range []netip.Prefix{{}, netip.MustParsePrefix("fd00::/64")} {
		if _, err := cni.Conf(p, 0, "/run/x", ""); err == nil {
			t.Errorf("%v was accepted", p)
		}
	}
}

func TestGatewayIsTheFirstAddress(t *testing.T) {
	if got := cni.Gateway(netip.MustParsePrefix("10.42.3.0/24")); got != netip.MustParseAddr("10.42.3.1") {
		t.Errorf("gateway = %v", got)
	}
}
