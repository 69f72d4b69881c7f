package masquerade

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/atollhq/atoll/pkg/remedy"
)

const sysctlRoot = "/proc/sys"

// Forward makes the kernel forward packets, which every packet of a pod needs. root is /proc/sys.
//
// A kernel that forwards IPv6 stops listening to router advertisements, which on most networks are where the machine has its
// default route from. Interfaces that listen are therefore told to go on (accept_ra=2) first.
// Settings that are right already are not written, so a read-only /proc/sys is no problem if somebody set them before.
func Forward(root string, ipv4, ipv6 bool) error {
	if ipv4 {
		if err := ensure(root, "net/ipv4/ip_forward", "1"); err != nil {
			return err
		}
	}
	if !ipv6 {
		return nil
	}
	if current, err := read(root, "net/ipv6/conf/all/forwarding"); err == nil && current == "1" {
		return nil
	}
	listening, err := filepath.Glob(filepath.Join(root, "net/ipv6/conf/*/accept_ra"))
	if err != nil {
		return err
	}
	for _, path := range listening {
		key, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		// An interface may go away at any moment; that is no error.
		if current, err := read(root, key); err == nil && current == "1" {
			if err := ensure(root, key, "2"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return ensure(root, "net/ipv6/conf/all/forwarding", "1")
}

// Loosen lets packets in on an interface although the answer would leave by another, as happens on machines with several
// networks. It only acts where the kernel is strict (rp_filter=1). root is /proc/sys.
func Loosen(root, iface string) error {
	all, err := read(root, "net/ipv4/conf/all/rp_filter")
	if err != nil {
		return fmt.Errorf("read net.ipv4.conf.all.rp_filter: %w", err)
	}
	key := "net/ipv4/conf/" + iface + "/rp_filter"
	own, err := read(root, key)
	if err != nil {
		return fmt.Errorf("read rp_filter of %s: %w", iface, err)
	}
	if max(all, own) != "1" { // the kernel takes the larger of the two; 2 is loose
		return nil
	}
	return ensure(root, key, "2")
}

func read(root, key string) (string, error) {
	b, err := os.ReadFile(filepath.Join(root, key))
	return strings.TrimSpace(string(b)), err
}

// ensure writes a setting unless it has the value already.
func ensure(root, key, value string) error {
	name := strings.ReplaceAll(key, "/", ".")
	current, err := read(root, key)
	if err == nil && current == value {
		return nil
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(root, key), []byte(value), 0o644)
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("set %s=%s: %w", name, value, err)
	switch {
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		return remedy.Wrap(err, "run 'sysctl -w %s=%s' on the host, or start atoll as root with a writable /proc/sys (a container needs --privileged)", name, value)
	case errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(key, "net/ipv6"):
		return remedy.Wrap(err, "enable IPv6 in the kernel, or leave IPv6 out of --cluster-cidr and --service-cidr")
	}
	return err
}
