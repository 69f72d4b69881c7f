package policy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/knftables"
)

// Table keeps the nftables table equal to a Ruleset. It is not safe for concurrent use.
type Table struct {
	nft knftables.Interface
	now func() time.Time
	// known is false until the first Sync, and after an error: then the table is read before it is written.
	known   bool
	applied *Ruleset
	// stale holds chains and sets that are in the table although nothing uses them, since when, and whether each is a set.
	// Kernels before 6.2 refuse to delete a chain in the moment after the last map element that led to it has gone.
	stale map[string]time.Time
}

// linger is how long an unused chain or set stays before it is deleted.
const linger = time.Second

// NewTable makes a Table. It runs nothing.
func NewTable(nft knftables.Interface, now func() time.Time) *Table {
	return &Table{nft: nft, now: now, stale: map[string]time.Time{}}
}

// Sync makes the table equal to want, in one transaction: a packet meets either the old rules or the new ones.
// It returns the number of operations; 0 means that nothing had to change.
// After an error the old rules are in force, and the next Sync starts from what is really there.
func (t *Table) Sync(ctx context.Context, want *Ruleset) (operations int, err error) {
	defer func() {
		if err != nil {
			t.known = false
		}
	}()
	tx := t.nft.NewTransaction()
	switch {
	case !t.known:
		if err := t.replace(ctx, tx, want); err != nil {
			return 0, err
		}
	case want == nil && t.applied == nil:
	case want == nil:
		t.remove(tx)
	default:
		t.update(tx, want)
	}
	if tx.NumOperations() > 0 {
		if err := t.nft.Run(ctx, tx); err != nil {
			if t.known || want == nil {
				return 0, fmt.Errorf("write nftables table %s: %w", TableName, err)
			}
			// What an older version left may not fit, such as a set of another type. Then all of it goes.
			tx = t.nft.NewTransaction()
			t.remove(tx)
			t.create(tx, want)
			if again := t.nft.Run(ctx, tx); again != nil {
				return 0, fmt.Errorf("replace nftables table %s: %w", TableName, errors.Join(again, err))
			}
		}
	}
	t.known, t.applied = true, want
	return tx.NumOperations(), nil
}

// Tidy deletes what has been unused for a while. It returns whether there is more to delete later.
func (t *Table) Tidy(ctx context.Context) (later bool, err error) {
	if t.applied == nil {
		clear(t.stale)
		return false, nil
	}
	chains, sets := t.nft.NewTransaction(), t.nft.NewTransaction()
	var due []string
	for _, name := range slices.Sorted(maps.Keys(t.stale)) {
		if t.now().Sub(t.stale[name]) < linger {
			continue
		}
		due = append(due, name)
		kind, bare, _ := strings.Cut(name, " ")
		switch kind {
		case "chain":
			chains.Delete(&knftables.Chain{Name: bare})
		case "set":
			sets.Delete(&knftables.Set{Name: bare})
		case "map":
			sets.Delete(&knftables.Map{Name: bare})
		}
	}
	for _, name := range due {
		delete(t.stale, name) // what cannot be deleted now is found again by the next full replacement
	}
	for _, tx := range []*knftables.Transaction{chains, sets} {
		if tx.NumOperations() > 0 {
			if e := t.nft.Run(ctx, tx); e != nil {
				err = errors.Join(err, fmt.Errorf("delete unused parts of nftables table %s: %w", TableName, e))
			}
		}
	}
	return len(t.stale) > 0, err
}

// Intact tells whether the table still has every rule, which it has not after somebody's "nft flush ruleset".
// The content of sets is not looked at. Where there should be no table nothing is looked at either.
func (t *Table) Intact(ctx context.Context) (bool, error) {
	if !t.known || t.applied == nil {
		return true, nil
	}
	rules, err := t.nft.ListRules(ctx, "")
	if knftables.IsNotFound(err) {
		t.known = false
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read nftables table %s: %w", TableName, err)
	}
	count := map[string]int{}
	for _, r := range rules {
		count[r.Chain]++
	}
	for name, c := range t.applied.Chains {
		if count[name] != len(c.Rules) {
			t.known = false
			return false, nil
		}
	}
	return true, nil
}

// remove deletes the table if it exists. "destroy" needs nft 1.0.7.
func (t *Table) remove(tx *knftables.Transaction) {
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	clear(t.stale)
}

// replace makes the table equal to want whatever is in it, without a moment in which a packet meets neither the old rules nor
// the new ones. So hooks stay registered, and entries of maps that stay the same are left alone: kernels before 6.18 may miss
// one that is deleted and added in the same transaction.
func (t *Table) replace(ctx context.Context, tx *knftables.Transaction, want *Ruleset) error {
	if want == nil {
		t.remove(tx)
		return nil
	}
	there, err := t.nft.ListAll(ctx)
	if err != nil && !knftables.IsNotFound(err) {
		return fmt.Errorf("read nftables table %s: %w", TableName, err)
	}
	clear(t.stale)
	for _, name := range there["chain"] {
		tx.Flush(&knftables.Chain{Name: name})
		if _, ok := want.Chains[name]; !ok {
			t.stale["chain "+name] = t.now()
		}
	}
	for _, name := range there["set"] {
		tx.Flush(&knftables.Set{Name: name})
		if s, ok := want.Sets[name]; !ok || s.Verdicts {
			t.stale["set "+name] = t.now()
		}
	}
	have := &Ruleset{Sets: map[string]Set{}}
	for _, name := range there["map"] {
		if s, ok := want.Sets[name]; !ok || !s.Verdicts {
			tx.Flush(&knftables.Map{Name: name})
			t.stale["map "+name] = t.now()
			continue
		}
		if have.Sets[name], err = t.readMap(ctx, name); err != nil {
			return err
		}
	}
	tx.Add(tableObject())
	t.diff(tx, have, want)
	return nil
}

// readMap reads the elements of a verdict map.
func (t *Table) readMap(ctx context.Context, name string) (Set, error) {
	out := Set{Verdicts: true, Elements: map[string]Element{}}
	elements, err := t.nft.ListElements(ctx, "map", name)
	if err != nil {
		return out, fmt.Errorf("read nftables map %s: %w", name, err)
	}
	for _, e := range elements {
		if len(e.Value) == 1 {
			out.Elements[strings.Join(e.Key, " . ")] = Element{Verdict: e.Value[0]}
		}
	}
	return out, nil
}

func tableObject() *knftables.Table {
	return &knftables.Table{Comment: knftables.PtrTo("NetworkPolicy, made by atoll")}
}

// create adds everything to a table that has no rules and no elements.
func (t *Table) create(tx *knftables.Transaction, want *Ruleset) {
	tx.Add(tableObject())
	t.diff(tx, &Ruleset{}, want)
}

func (t *Table) update(tx *knftables.Transaction, want *Ruleset) {
	if t.applied == nil {
		t.create(tx, want)
		return
	}
	t.diff(tx, t.applied, want)
}

// diff adds what turns have into want. Chains and sets exist before something refers to them.
func (t *Table) diff(tx *knftables.Transaction, have, want *Ruleset) {
	chains, sets := slices.Sorted(maps.Keys(want.Chains)), slices.Sorted(maps.Keys(want.Sets))
	for _, name := range sets {
		if _, ok := have.Sets[name]; !ok {
			addSet(tx, name, want.Sets[name])
			delete(t.stale, setKind(want.Sets[name])+" "+name)
		}
	}
	for _, name := range chains {
		if _, ok := have.Chains[name]; !ok {
			addChain(tx, name, want.Chains[name])
			delete(t.stale, "chain "+name)
		}
	}
	for _, name := range chains {
		if old, ok := have.Chains[name]; !ok || !slices.Equal(old.Rules, want.Chains[name].Rules) {
			if ok {
				tx.Flush(&knftables.Chain{Name: name})
			}
			for _, r := range want.Chains[name].Rules {
				tx.Add(&knftables.Rule{Chain: name, Rule: r})
			}
		}
	}
	for _, name := range sets {
		diffElements(tx, name, have.Sets[name].Elements, want.Sets[name])
	}
	t.retire(tx, have, want)
}

// retire empties what is no longer wanted and marks it for Tidy.
func (t *Table) retire(tx *knftables.Transaction, have, want *Ruleset) {
	for _, name := range slices.Sorted(maps.Keys(have.Chains)) {
		if _, ok := want.Chains[name]; !ok {
			tx.Flush(&knftables.Chain{Name: name})
			t.stale["chain "+name] = t.now()
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have.Sets)) {
		if _, ok := want.Sets[name]; !ok {
			tx.Flush(setObject(name, have.Sets[name]))
			t.stale[setKind(have.Sets[name])+" "+name] = t.now()
		}
	}
}

func setKind(s Set) string {
	if s.Verdicts {
		return "map"
	}
	return "set"
}

func setObject(name string, s Set) knftables.Object {
	if s.Verdicts {
		return &knftables.Map{Name: name}
	}
	return &knftables.Set{Name: name}
}

func addSet(tx *knftables.Transaction, name string, s Set) {
	if s.Verdicts {
		tx.Add(&knftables.Map{Name: name, Type: s.Type, Comment: text(s.Comment)})
	} else {
		tx.Add(&knftables.Set{Name: name, Type: s.Type, Comment: text(s.Comment)})
	}
}

func addChain(tx *knftables.Transaction, name string, c Chain) {
	chain := &knftables.Chain{Name: name, Comment: text(c.Comment)}
	if c.Hook != "" {
		chain.Type = knftables.PtrTo(knftables.FilterType)
		chain.Hook = knftables.PtrTo(c.Hook)
		chain.Priority = knftables.PtrTo(knftables.FilterPriority)
	}
	tx.Add(chain)
}

// diffElements adds and deletes elements. A changed one is deleted and added, which nobody sees within a transaction.
func diffElements(tx *knftables.Transaction, name string, have map[string]Element, want Set) {
	element := func(key string, e Element) *knftables.Element {
		out := &knftables.Element{Set: name, Key: strings.Split(key, " . "), Comment: text(e.Comment)}
		if want.Verdicts {
			out.Set, out.Map, out.Value = "", name, []string{e.Verdict}
		}
		return out
	}
	for _, key := range slices.Sorted(maps.Keys(have)) {
		if e, ok := want.Elements[key]; !ok || e != have[key] {
			tx.Delete(element(key, have[key]))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want.Elements)) {
		if e, ok := have[key]; !ok || e != want.Elements[key] {
			tx.Add(element(key, want.Elements[key]))
		}
	}
}

func text(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
