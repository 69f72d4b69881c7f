package proxy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/atollhq/atoll/pkg/atomicfile"
)

// protocolsFile is where nft, through libc, looks up names of protocols. A machine with nothing but a kernel has none.
const protocolsFile = "/etc/protocols"

const protocols = `# Written by atoll because this machine had no list of protocols.
ip	0	IP
icmp	1	ICMP
tcp	6	TCP
udp	17	UDP
ipv6-icmp	58	IPv6-ICMP
sctp	132	SCTP
`

// nameProtocols writes the list unless there is one.
//
// Without it nft lists "6" for what kube-proxy wrote as "tcp". After a restart kube-proxy then takes what is in the kernel for
// left-overs: it adds each element by name, which changes nothing, and removes it by number. From then on it believes in elements
// that are not there, and its next change of them fails as a whole.
func nameProtocols(path string) error {
	_, err := os.Stat(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := atomicfile.Write(path, []byte(protocols), 0o644); err != nil {
		return fmt.Errorf("list protocols for nft: %w", err)
	}
	return nil
}
