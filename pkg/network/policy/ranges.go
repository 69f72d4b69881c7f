package policy

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	netutils "k8s.io/utils/net"
)

// Range is a run of addresses of one family, both ends included.
type Range struct{ First, Last netip.Addr }

// Contains tells whether a lies in r.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.First.BitLen() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// String writes r as nft reads it: an address, a prefix where one fits, else "first-last".
func (r Range) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	for bits := range r.First.BitLen() {
		if p := netip.PrefixFrom(r.First, bits); p.Masked() == p && lastOf(p) == r.Last {
			return p.String()
		}
	}
	return r.First.String() + "-" + r.Last.String()
}

// everything tells whether r is the whole of its family.
func (r Range) everything() bool {
	whole := netip.PrefixFrom(r.First, 0)
	return whole.Masked().Addr() == r.First && lastOf(whole) == r.Last
}

func rangeOf(p netip.Prefix) Range { return Range{p.Masked().Addr(), lastOf(p)} }

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// without returns the parts of rs that do not lie in cut.
func without(rs []Range, cut Range) []Range {
	var out []Range
	for _, r := range rs {
		if !r.Contains(cut.First) && !cut.Contains(r.First) { // apart, or of another family
			out = append(out, r)
			continue
		}
		if r.First.Less(cut.First) {
			out = append(out, Range{r.First, cut.First.Prev()})
		}
		if cut.Last.Less(r.Last) {
			out = append(out, Range{cut.Last.Next(), r.Last})
		}
	}
	return out
}

// merged sorts rs and joins those that touch: nft refuses sets whose elements overlap.
func merged(rs []Range) []Range {
	rs = slices.Clone(rs)
	slices.SortFunc(rs, func(a, b Range) int { return a.First.Compare(b.First) })
	var out []Range
	for _, r := range rs {
		if n := len(out) - 1; n >= 0 && out[n].First.BitLen() == r.First.BitLen() {
			if next := out[n].Last.Next(); !next.IsValid() || r.First.Compare(next) <= 0 {
				if out[n].Last.Less(r.Last) {
					out[n].Last = r.Last
				}
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

// blockRanges returns what an ipBlock covers. Like the API server it accepts the old sloppy notations.
func blockRanges(cidr string, except []string) ([]Range, error) {
	p, err := parseCIDR(cidr)
	if err != nil {
		return nil, err
	}
	rs := []Range{rangeOf(p)}
	for _, e := range except {
		p, err := parseCIDR(e)
		if err != nil {
			return nil, err
		}
		rs = without(rs, rangeOf(p))
	}
	return rs, nil
}

func parseCIDR(s string) (netip.Prefix, error) {
	_, n, err := netutils.ParseCIDRSloppy(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("parse ipBlock %q: %w", s, err)
	}
	return prefixOf(n), nil
}

func prefixOf(n *net.IPNet) netip.Prefix {
	ones, _ := n.Mask.Size()
	addr, _ := netip.AddrFromSlice(n.IP)
	if addr.Is4In6() && ones >= 96 {
		addr, ones = addr.Unmap(), ones-96
	}
	return netip.PrefixFrom(addr, ones).Masked()
}
