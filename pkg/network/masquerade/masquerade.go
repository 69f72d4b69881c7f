// Package masquerade lets pods reach what is outside the cluster: their traffic leaves the node with the node's own address.
//
// It owns the nftables table inet atoll-masq. What stays as it is: traffic to pods, to Services, to multicast groups, to the
// node itself, and to the prefixes that the user excludes. The rules stay in place when the process stops, because pods go on.
// When somebody flushes them they are back within half a minute. The package also turns on forwarding in the kernel.
package masquerade

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/knftables"

	"github.com/atollhq/atoll/pkg/remedy"
)

// TableName is the nftables table, of family inet, that this package owns.
const TableName = "atoll-masq"

const (
	chain      = "postrouting"
	checkEvery = 30 * time.Second
	nftTimeout = 30 * time.Second
)

// Config says what to masquerade. All prefixes may be of either family; a family without a pod prefix gets no rule.
type Config struct {
	PodCIDRs     []netip.Prefix // of the cluster, not of the node
	ServiceCIDRs []netip.Prefix
	Keep         []netip.Prefix // further destinations that shall see the addresses of pods
	Log          *slog.Logger
	// NFT opens the table; nil opens the real one with the nft program in PATH.
	NFT func() (knftables.Interface, error)
	// SysctlRoot is where the kernel's settings are; empty means /proc/sys.
	SysctlRoot string
	// CheckEvery is how often the rules are looked at; 30 s when zero.
	CheckEvery time.Duration
}

// Masquerade keeps the rules in place. It is a run.Component that may run again after a failure.
type Masquerade struct {
	cfg   Config
	log   *slog.Logger
	rules []string
}

// New makes a Masquerade. It runs nothing.
func New(cfg Config) *Masquerade {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.NFT == nil {
		cfg.NFT = openTable
	}
	return &Masquerade{cfg: cfg, log: cfg.Log.With("component", "masquerade"), rules: Rules(cfg)}
}

func openTable() (knftables.Interface, error) {
	nft, err := knftables.New(knftables.InetFamily, TableName)
	if err != nil {
		return nil, remedy.Wrap(fmt.Errorf("open nftables: %w", err),
			"use a kernel with nf_tables (CONFIG_NF_TABLES_INET, CONFIG_NFT_MASQ) and run as root")
	}
	return nft, nil
}

// Name is the component's name.
func (m *Masquerade) Name() string { return "masquerade" }

// Run turns on forwarding, writes the rules, and looks after them until ctx ends.
func (m *Masquerade) Run(ctx context.Context, ready func()) error {
	has6 := slices.ContainsFunc(m.cfg.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is6() })
	has4 := slices.ContainsFunc(m.cfg.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is4() })
	if err := Forward(cmp.Or(m.cfg.SysctlRoot, sysctlRoot), has4, has6); err != nil {
		return err
	}
	nft, err := m.cfg.NFT()
	if err != nil {
		return err
	}
	if err := m.write(ctx, nft); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	ready()
	tick := time.NewTicker(cmp.Or(m.cfg.CheckEvery, checkEvery))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			m.check(ctx, nft)
		}
	}
}

// check writes the rules again if they are not as they should be.
func (m *Masquerade) check(ctx context.Context, nft knftables.Interface) {
	ctx, cancel := context.WithTimeout(ctx, nftTimeout)
	defer cancel()
	rules, err := nft.ListRules(ctx, chain)
	if err != nil && !knftables.IsNotFound(err) {
		m.log.Debug("rules could not be checked", "err", err)
		return
	}
	want := m.mark()
	ours := func(r *knftables.Rule) bool { return r.Comment != nil && *r.Comment == want }
	if err == nil && len(rules) == len(m.rules) && !slices.ContainsFunc(rules, func(r *knftables.Rule) bool { return !ours(r) }) {
		return
	}
	if err := m.write(ctx, nft); err != nil {
		if ctx.Err() == nil {
			m.log.Warn("masquerading rules are missing and cannot be written", "err", err)
		}
		return
	}
	m.log.Warn("somebody removed the masquerading rules, they were written again")
}

// write replaces the rules in one transaction, so that there is no moment without.
func (m *Masquerade) write(ctx context.Context, nft knftables.Interface) error {
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("traffic of pods that leaves the cluster, made by atoll")})
	tx.Add(&knftables.Chain{
		Name: chain, Type: knftables.PtrTo(knftables.NATType), Hook: knftables.PtrTo(knftables.PostroutingHook),
		Priority: knftables.PtrTo(knftables.SNATPriority),
	})
	tx.Flush(&knftables.Chain{Name: chain})
	for _, r := range m.rules {
		tx.Add(&knftables.Rule{Chain: chain, Rule: r, Comment: knftables.PtrTo(m.mark())})
	}
	ctx, cancel := context.WithTimeout(ctx, nftTimeout)
	defer cancel()
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("write nftables table %s: %w", TableName, err)
	}
	return nil
}

// mark tells rules of this configuration from others.
func (m *Masquerade) mark() string {
	return fmt.Sprintf("atoll %x", sha256.Sum256([]byte(strings.Join(m.rules, "\n"))))[:22]
}

// Rules returns the rules of the one chain, at most one for each family.
func Rules(cfg Config) []string {
	var rules []string
	for _, f := range []struct {
		word  string
		bits  int
		never []string // multicast, and what is never forwarded
	}{
		{"ip", 32, []string{"224.0.0.0/4"}},
		{"ip6", 128, []string{"ff00::/8", "fe80::/10"}},
	} {
		pods := ofFamily(f.bits, cfg.PodCIDRs)
		if len(pods) == 0 {
			continue
		}
		keep := ofFamily(f.bits, slices.Concat(cfg.PodCIDRs, cfg.ServiceCIDRs, cfg.Keep))
		for _, s := range f.never {
			keep = append(keep, netip.MustParsePrefix(s))
		}
		rules = append(rules, fmt.Sprintf(`oifname != "lo" %s saddr %s %s daddr != %s masquerade fully-random`,
			f.word, set(pods), f.word, set(keep)))
	}
	return rules
}

func ofFamily(bits int, all []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range all {
		if p.Addr().BitLen() == bits {
			out = append(out, p.Masked())
		}
	}
	return out
}

// set writes prefixes as nft reads them, without those that lie in another: nft refuses sets whose elements overlap.
func set(ps []netip.Prefix) string {
	ps = slices.Clone(ps)
	slices.SortFunc(ps, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var out []string
	var last netip.Prefix
	for _, p := range ps {
		if last.IsValid() && last.Overlaps(p) {
			continue
		}
		out, last = append(out, p.String()), p
	}
	return "{ " + strings.Join(out, ", ") + " }"
}
