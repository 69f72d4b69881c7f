package hostcheck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// errUnknown is in errors of trials that failed because the kernel has no such thing.
var errUnknown = errors.New("the kernel does not have it")

// local is the machine that this process runs on.
type local struct{}

func (local) Facts() Facts {
	var name unix.Utsname
	_ = unix.Uname(&name) // cannot fail with a valid pointer
	return Facts{UID: os.Geteuid(), Kernel: unix.ByteSliceToString(name.Release[:]), Now: time.Now()}
}

func (local) Statfs(path string) (Space, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return Space{}, err
	}
	unit := uint64(s.Bsize) //nolint:gosec,unconvert // the type differs between architectures; never negative
	return Space{
		Total: s.Blocks * unit, Free: s.Bavail * unit, Inodes: s.Files, FreeNodes: s.Ffree, NoExec: s.Flags&unix.ST_NOEXEC != 0,
	}, nil
}

func (local) Try(ctx context.Context, what Trial, arg string) error {
	var f func() error
	switch what {
	case TryModule:
		return loadModule(ctx, arg)
	case TryLink:
		f = func() error { return inNewNetwork(func() error { return makeLink(arg) }) }
	case TryNFTables:
		f = func() error { return inNewNetwork(func() error { return applyRules(ctx, arg) }) }
	case TryOverlay:
		f = func() error { return mountOverlay(arg) }
	case TryCreate:
		f = func() error { return createFile(arg) }
	case TryOpen:
		f = func() error { return openToWrite(arg) }
	default:
		return fmt.Errorf("unknown trial %q", what)
	}
	// A disk that hangs holds the system call for ever: the caller gets its answer all the same.
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("no answer: %w", ctx.Err())
	}
}

func loadModule(ctx context.Context, name string) error {
	out, err := exec.CommandContext(ctx, "modprobe", "-q", name).CombinedOutput()
	if err != nil {
		return fmt.Errorf("modprobe %s: %w %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}

// inNewNetwork runs f on a thread with a network namespace of its own. The thread and the namespace end with f.
func inNewNetwork(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked, so that the thread is thrown away
		if unix.Gettid() == unix.Getpid() {
			// Go cannot end the first thread, and /proc/self/net shows the network of that one. While it is locked here, the next
			// attempt gets another.
			done <- inNewNetwork(f)
			runtime.UnlockOSThread()
			return
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("make a network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

func makeLink(kind string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "check0"
	var link netlink.Link
	switch kind {
	case "veth":
		link = &netlink.Veth{LinkAttrs: attrs, PeerName: "check1"}
	case "vxlan":
		link = &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 8472, Learning: false}
	default:
		link = &netlink.GenericLink{LinkAttrs: attrs, LinkType: kind}
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer handle.Close()
	err = handle.LinkAdd(link)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: %w", errUnknown, err)
	}
	return err
}

// rules use everything that kube-proxy, NetworkPolicy and masquerading ask of the kernel. No packet ever meets them.
const rules = `table ip atoll-check {
	comment "made by atoll check-config";
	set seen { type ipv4_addr; flags dynamic,timeout; timeout 10s; }
	set ranges { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }
	map services { type ipv4_addr . inet_proto . inet_service : verdict; }
	chain target { meta mark set meta mark or 0x4000; meta l4proto tcp dnat to 10.0.0.1:80; }
	chain prerouting {
		type nat hook prerouting priority dstnat;
		ip daddr . meta l4proto . th dport vmap @services;
		fib daddr type local ip protocol tcp numgen random mod 2 vmap { 0 : goto target, 1 : accept };
	}
	chain postrouting { type nat hook postrouting priority srcnat; meta mark & 0x4000 != 0 masquerade fully-random; }
	chain forward {
		type filter hook forward priority filter;
		ct state established,related accept;
		ip saddr @ranges update @seen { ip saddr timeout 10s };
		meta l4proto tcp reject with tcp reset;
		reject;
	}
}
`

// applyRules gives the rules to the nft program, or asks the kernel for nftables' generation where there is no program.
func applyRules(ctx context.Context, program string) error {
	if program == "" {
		found, err := exec.LookPath("nft")
		if err != nil {
			return askNFTables()
		}
		program = found
	}
	if err := askNFTables(); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	out, err := cmd.CombinedOutput()
	if err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("%w: %s", err, first)
	}
	return nil
}

func askNFTables() error {
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: unix.NFNETLINK_V0})
	if _, err := request.Execute(unix.NETLINK_NETFILTER, 0); err != nil {
		return fmt.Errorf("%w: %w", errUnknown, err)
	}
	return nil
}

// mountOverlay stacks two folders and removes a file that lies in the lower one, which is what a container image needs.
func mountOverlay(dir string) (err error) {
	temp, err := os.MkdirTemp(dir, ".atoll-check-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	part := func(name string) string { return filepath.Join(temp, name) }
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(part(name), 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(part("lower/file"), nil, 0o600); err != nil {
		return err
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", part("lower"), part("upper"), part("work"))
	if err := unix.Mount("overlay", part("merged"), "overlay", 0, options); err != nil {
		if errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("%w: %w", errUnknown, err)
		}
		return err
	}
	defer func() { err = errors.Join(err, unix.Unmount(part("merged"), unix.MNT_DETACH)) }()
	if err := os.Remove(part("merged/file")); err != nil {
		return err
	}
	left, err := os.ReadDir(part("merged"))
	if err == nil && len(left) > 0 {
		err = errors.New("a file that was removed is still there")
	}
	return err
}

func createFile(dir string) error {
	f, err := os.CreateTemp(dir, ".atoll-check-")
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 4096))
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
}

func openToWrite(file string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return f.Close()
}
