package policy_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/knftables"

	"github.com/atollhq/atoll/pkg/network/policy"
)

var update = flag.Bool("update", false, "rewrite files in testdata")

// TestTableText shows the whole table of a small cluster. Read the file as a diff when it changes.
func TestTableText(t *testing.T) {
	w := newWorld()
	w.pod("x/a").Status.PodIPs = append(w.pod("x/a").Status.PodIPs, corev1.PodIP{IP: "fd42::11"})
	w.pods = append(w.pods, pod("x", "starting", "n1"))
	w.policies = parse(t, denyX, `x/shop
podSelector: {matchLabels: {app: a}}
ingress:
- from: [{namespaceSelector: {matchLabels: {team: 'y'}}}, {ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.64/26]}}]
  ports: [{port: web}, {port: 81}, {port: 8000, endPort: 8100, protocol: UDP}]
egress:
- to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}]
  ports: [{port: 53, protocol: UDP}]
- to: [{podSelector: {}}, {ipBlock: {cidr: '::/0'}}]`)
	fake := knftables.NewFake(knftables.InetFamily, policy.TableName)
	table := policy.NewTable(fake, time.Now)
	if _, err := table.Sync(t.Context(), policy.Render(policy.Compute(w.pods, w.namespaces, w.policies, w.nodes["n1"]))); err != nil {
		t.Fatal(err)
	}
	const file = "testdata/table.nft"
	got := fake.Dump()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the table differs from %s; look at it after 'go test -update':\n%s", file, got)
	}
}

// TestOnlyTheDifference: a change costs what it changes.
func TestOnlyTheDifference(t *testing.T) {
	w := newWorld()
	fake := knftables.NewFake(knftables.InetFamily, policy.TableName)
	table := policy.NewTable(fake, time.Now)
	sync := func() (int, string) {
		t.Helper()
		n, err := table.Sync(t.Context(), policy.Render(policy.Compute(w.pods, w.namespaces, w.policies, w.nodes["n1"])))
		if err != nil {
			t.Fatal(err)
		}
		return n, fake.LastTransaction.String()
	}
	w.policies = parse(t, denyX, "x/in\npodSelector: {}\ningress: [{from: [{namespaceSelector: {matchLabels: {team: 'y'}}}]}]")
	sync()
	if n, tx := sync(); n != 0 {
		t.Errorf("nothing changed, %d operations:\n%s", n, tx)
	}
	for _, step := range []struct {
		name   string
		change func()
		most   int
		words  string // in the transaction
	}{
		{"a peer comes", func() { w.pods = append(w.pods, pod("y", "new", "n2", "10.42.2.50")) }, 1, "add element inet atoll-policy group/"},
		{"a peer goes", func() { w.pods = w.pods[:len(w.pods)-1] }, 1, "delete element inet atoll-policy group/"},
		{"a stranger comes", func() { w.pods = append(w.pods, pod("z", "new", "n1", "10.42.1.51")) }, 0, ""},
		{"an isolated pod comes", func() { w.pods = append(w.pods, pod("x", "new", "n1", "10.42.1.52")) }, 8, "add chain inet atoll-policy pod/x/new/in"},
		{"its labels change nothing", func() { w.pod("x/new").Labels["app"] = "other" }, 0, ""},
		{"a port is added", func() {
			w.policies[1].Spec.Ingress[0].Ports = parse(t, "x/p\ningress: [{ports: [{port: 81}]}]")[0].Spec.Ingress[0].Ports
		}, 2, "tcp dport { 81 } accept"},
		{"a policy goes", func() { w.policies = w.policies[:1] }, 11, "flush chain inet atoll-policy policy/x/in/in"},
		{"the last policy goes", func() { w.policies = nil }, 2, "delete table inet atoll-policy"},
		{"and nothing is left to do", func() {}, 0, ""},
	} {
		step.change()
		n, tx := sync()
		if n > step.most || n == 0 && step.most > 0 || n > 0 && !strings.Contains(tx, step.words) {
			t.Errorf("%s: %d operations, want at most %d with %q:\n%s", step.name, n, step.most, step.words, tx)
		}
	}
	if fake.Table != nil {
		t.Error("the table is still there")
	}
}

// TestTidy: what is no longer used is deleted, but only a while later, and not if it is used again.
func TestTidy(t *testing.T) {
	w := newWorld()
	now := time.Unix(0, 0)
	fake := knftables.NewFake(knftables.InetFamily, policy.TableName)
	table := policy.NewTable(fake, func() time.Time { return now })
	allow := "x/in\npodSelector: {}\ningress: [{from: [{namespaceSelector: {matchLabels: {team: 'y'}}}]}]"
	sync := func(policies ...string) {
		t.Helper()
		w.policies = parse(t, policies...)
		if _, err := table.Sync(t.Context(), policy.Render(policy.Compute(w.pods, w.namespaces, w.policies, w.nodes["n1"]))); err != nil {
			t.Fatal(err)
		}
	}
	has := func() bool {
		chains, err := fake.List(t.Context(), "chains")
		if err != nil {
			t.Fatal(err)
		}
		return slices.Contains(chains, "policy/x/in/in")
	}
	tidy := func() bool {
		t.Helper()
		later, err := table.Tidy(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return later
	}
	sync(denyX, allow)
	sync(denyX)
	if later := tidy(); !later || !has() {
		t.Errorf("deleted at once: later %v, there %v", later, has())
	}
	sync(denyX, allow)
	now = now.Add(time.Minute)
	if later := tidy(); later || !has() {
		t.Errorf("deleted although used again: later %v, there %v", later, has())
	}
	sync(denyX)
	now = now.Add(time.Minute)
	if later := tidy(); later || has() {
		t.Errorf("not deleted: later %v, there %v", later, has())
	}
	sets, _ := fake.List(t.Context(), "sets")
	if slices.ContainsFunc(sets, func(s string) bool { return strings.HasPrefix(s, "group/") }) {
		t.Errorf("a set that nothing uses is left: %v", sets)
	}
}

// breaking is a table whose next transactions fail.
type breaking struct {
	knftables.Interface
	failures int
}

func (b *breaking) Run(ctx context.Context, tx *knftables.Transaction) error {
	if b.failures > 0 {
		b.failures--
		return errors.New("no memory")
	}
	return b.Interface.Run(ctx, tx)
}

// TestAfterAnError: what a failed transaction did not do is done by the next, whatever changed meanwhile.
func TestAfterAnError(t *testing.T) {
	w := newWorld()
	fake := knftables.NewFake(knftables.InetFamily, policy.TableName)
	nft := &breaking{Interface: fake}
	table := policy.NewTable(nft, time.Now)
	sync := func(policies ...string) error {
		w.policies = parse(t, policies...)
		_, err := table.Sync(t.Context(), policy.Render(policy.Compute(w.pods, w.namespaces, w.policies, w.nodes["n1"])))
		return err
	}
	if err := sync(denyX); err != nil {
		t.Fatal(err)
	}
	before := fake.Dump()
	nft.failures = 1
	other := "x/in\npodSelector: {}\ningress: [{}]"
	if err := sync(other); err == nil || fake.Dump() != before {
		t.Fatalf("err %v, changed %v", err, fake.Dump() != before)
	}
	if err := sync(other); err != nil {
		t.Fatal(err)
	}
	fresh := knftables.NewFake(knftables.InetFamily, policy.TableName)
	if _, err := policy.NewTable(fresh, time.Now).Sync(t.Context(), policy.Render(policy.Compute(w.pods, w.namespaces, w.policies, w.nodes["n1"]))); err != nil {
		t.Fatal(err)
	}
	for name, chain := range fresh.Table.Chains {
		got := fake.Table.Chains[name]
		if got == nil || rulesText(got.Rules) != rulesText(chain.Rules) {
			t.Errorf("chain %s: %v, want %v", name, got, chain)
		}
	}
}

func rulesText(rules []*knftables.Rule) string {
	var out []string
	for _, r := range rules {
		out = append(out, r.Rule)
	}
	return strings.Join(out, "\n")
}

// TestIntact: the check sees that somebody emptied the table.
func TestIntact(t *testing.T) {
	w := newWorld()
	w.policies = parse(t, denyX)
	rules := policy.Render(policy.Compute(w.pods, w.namespaces, w.policies, w.nodes["n1"]))
	for name, damage := range map[string]func(tx *knftables.Transaction){
		"table deleted": func(tx *knftables.Transaction) { tx.Delete(&knftables.Table{}) },
		"chain flushed": func(tx *knftables.Transaction) { tx.Flush(&knftables.Chain{Name: "from-pods"}) },
	} {
		fake := knftables.NewFake(knftables.InetFamily, policy.TableName)
		table := policy.NewTable(fake, time.Now)
		if _, err := table.Sync(t.Context(), rules); err != nil {
			t.Fatal(err)
		}
		if ok, err := table.Intact(t.Context()); !ok || err != nil {
			t.Fatalf("%s: not intact before: %v", name, err)
		}
		tx := fake.NewTransaction()
		damage(tx)
		if err := fake.Run(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
		if ok, err := table.Intact(t.Context()); ok || err != nil {
			t.Errorf("%s: not noticed, err %v", name, err)
		}
		if n, err := table.Sync(t.Context(), rules); n == 0 || err != nil {
			t.Errorf("%s: not repaired: %d operations, %v", name, n, err)
		}
		if ok, _ := table.Intact(t.Context()); !ok {
			t.Errorf("%s: not intact after", name)
		}
	}
}

// TestRealTable runs against nft what the fake cannot judge: names at their longest, odd leftovers, deletion, repair.
func TestRealTable(t *testing.T) {
	r := newRig(t)
	long := func(n int) string { return strings.Repeat("long-name.", n/10) + "end" }
	ns := long(50)
	r.namespaces = append(r.namespaces, namespace(ns))
	r.pods = append(r.pods, pod(ns, long(240), "n1", "10.42.1.60"), pod(ns, "short", "n1", "10.42.1.61"))
	r.policies = parse(t, denyX,
		fmt.Sprintf("%s/%s\npodSelector: {}\ningress: [{from: [{podSelector: {matchLabels: {quote: x.y_z-1}}}, {podSelector: {}}], ports: [{port: web}]}]", ns, long(240)))

	// What an older version may have left: a set of another type under a name of ours, and a chain that nobody knows.
	r.node.NFT(`table inet atoll-policy {
		map from-pods-4 { type ipv6_addr : verdict; }
		set own-4 { type ipv4_addr; }
		chain forward { type filter hook forward priority filter; jump relic
		}
		chain relic { counter
		}
	}`)
	r.apply(t)
	if !tableHas(r, "pod/"+ns) || tableHas(r, "relic") {
		t.Errorf("leftovers of another shape were not replaced:\n%s", r.node.NFT("list table inet atoll-policy"))
	}

	// Leftovers that fit are kept until they are not used, then deleted.
	r.node.NFT("add chain inet atoll-policy relic\nadd set inet atoll-policy relics { type ipv4_addr; }\nadd rule inet atoll-policy forward jump relic")
	now := time.Now()
	r.table = policy.NewTable(r.nft, func() time.Time { return now })
	r.apply(t)
	now = now.Add(time.Minute)
	if later, err := r.table.Tidy(t.Context()); later || err != nil {
		t.Errorf("tidy: later %v, %v", later, err)
	}
	if tableHas(r, "relic") {
		t.Errorf("leftovers were not deleted:\n%s", r.node.NFT("list table inet atoll-policy"))
	}

	r.node.NFT("flush ruleset")
	if ok, err := r.table.Intact(t.Context()); ok || err != nil {
		t.Errorf("flush not noticed: %v", err)
	}
	r.apply(t)
	r.expect(t, r.boxes["y/a"], "tcp", "10.42.1.11:80", false)
	if ok, err := r.table.Intact(t.Context()); !ok || err != nil {
		t.Errorf("not intact after repair: %v", err)
	}
}

func tableHas(r *rig, word string) bool {
	return strings.Contains(r.node.NFT("list table inet "+policy.TableName), word)
}

// BenchmarkRound is one round on a full node: 110 pods here, 600 in the cluster, 60 policies.
func BenchmarkRound(b *testing.B) {
	w := newWorld()
	for i := range 600 {
		node := "n2"
		if i < 110 {
			node = "n1"
		}
		w.pods = append(w.pods, pod([]string{"x", "y", "z"}[i%3], fmt.Sprintf("p%d", i), node, fmt.Sprintf("10.42.%d.%d", 10+i/200, i%200)))
	}
	var docs []string
	for i := range 60 {
		docs = append(docs, fmt.Sprintf("%s/p%d\npodSelector: {}\ningress: [{from: [{namespaceSelector: {matchLabels: {team: x}}}], ports: [{port: %d}, {port: web}]}]",
			[]string{"x", "y", "z"}[i%3], i, 80+i))
	}
	w.policies = parse(b, docs...)
	for b.Loop() {
		policy.Render(policy.Compute(w.pods, w.namespaces, w.policies, w.nodes["n1"]))
	}
}
