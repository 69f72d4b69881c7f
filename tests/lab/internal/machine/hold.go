package machine

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Hold keeps a network namespace that it was started in: it waits for a line on in, turns the namespace into a router, says so on out,
// and sleeps until it is killed. Without the line (the command that builds the lab has died) it returns.
func Hold(in io.Reader, out io.WriteCloser) error {
	if _, err := bufio.NewReader(in).ReadString('\n'); err != nil {
		return errors.New("hold network: the command that builds the lab ended")
	}
	// Not configuration of the host: the file shows the setting of the reader's network namespace.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return fmt.Errorf("hold network: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("hold network: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("hold network: %w", err)
	}
	if _, err := fmt.Fprintln(out, "ok"); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	for {
		_ = unix.Pause()
	}
}
