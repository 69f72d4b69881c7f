// Package cniplugin is the CNI plugin atoll-policy, which comes last in the chain of the pod network.
//
// It tells the policy controller, over a Unix socket, which addresses a pod got, and waits until the rules for them are in
// force. So a pod is isolated before its first container starts, as the NetworkPolicy API demands; from the API alone the
// controller would learn the address a second or two after. When the controller cannot be reached for a while, ADD fails and
// kubelet tries again; DEL never fails. The package uses the standard library alone, so that the program stays small.
//
// In the network list:
//
//	{"type": "atoll-policy", "socket": "/run/atoll/policy.sock"}
package cniplugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

// Commands of a Request.
const (
	Attach = "attach"
	Detach = "detach"
)

// Request is what the plugin sends, as one JSON object.
type Request struct {
	Command   string       `json:"command"`
	Namespace string       `json:"namespace"`
	Pod       string       `json:"pod"`
	UID       string       `json:"uid,omitempty"`
	Sandbox   string       `json:"sandbox"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

// Reply is the answer, as one JSON object. Error is empty when all is well.
type Reply struct {
	Error string `json:"error,omitempty"`
}

// Patience is how long ADD waits for a controller that is not there yet: pods may start before it while the node comes up, and
// kubelet takes its time before it tries again.
const Patience = 10 * time.Second

// timeout is longer than the controller takes at most, shorter than kubelet waits for a sandbox.
const timeout = 15 * time.Second

// config is what the plugin reads of its configuration.
type config struct {
	CNIVersion string          `json:"cniVersion"`
	Socket     string          `json:"socket"`
	PrevResult json.RawMessage `json:"prevResult"`
}

// Main runs the plugin once and returns the exit code. getenv is os.Getenv, patience is Patience.
func Main(getenv func(string) string, stdin io.Reader, stdout io.Writer, patience time.Duration) int {
	var conf config
	if err := json.NewDecoder(stdin).Decode(&conf); err != nil && !errors.Is(err, io.EOF) {
		return fail(stdout, "", 6, fmt.Errorf("read configuration: %w", err))
	}
	switch getenv("CNI_COMMAND") {
	case "VERSION":
		fmt.Fprintln(stdout, `{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}`)
	case "ADD":
		if err := add(conf, getenv, patience); err != nil {
			return fail(stdout, conf.CNIVersion, 11, err) // 11: try again later
		}
		fmt.Fprintf(stdout, "%s\n", conf.PrevResult)
	case "DEL":
		req := request(Detach, getenv)
		_ = call(conf.Socket, req, 0) // the controller also notices that the pod is gone
	case "CHECK", "STATUS", "GC":
	default:
		return fail(stdout, conf.CNIVersion, 4, fmt.Errorf("CNI_COMMAND is %q", getenv("CNI_COMMAND")))
	}
	return 0
}

func add(conf config, getenv func(string) string, patience time.Duration) error {
	var prev struct {
		IPs []struct {
			Address string `json:"address"`
		} `json:"ips"`
	}
	if len(conf.PrevResult) == 0 {
		return errors.New("atoll-policy must come after the plugin that gives the address")
	}
	if err := json.Unmarshal(conf.PrevResult, &prev); err != nil {
		return fmt.Errorf("read prevResult: %w", err)
	}
	req := request(Attach, getenv)
	if req.Pod == "" {
		return nil // not a pod: somebody tries the network by hand
	}
	for _, ip := range prev.IPs {
		p, err := netip.ParsePrefix(ip.Address)
		if err != nil {
			return fmt.Errorf("read prevResult: %w", err)
		}
		req.Addresses = append(req.Addresses, p.Addr().Unmap())
	}
	return call(conf.Socket, req, patience)
}

// request reads who the pod is. CNI_ARGS is "K8S_POD_NAMESPACE=...;K8S_POD_NAME=...".
func request(command string, getenv func(string) string) Request {
	args := map[string]string{}
	for _, pair := range strings.Split(getenv("CNI_ARGS"), ";") {
		if k, v, ok := strings.Cut(pair, "="); ok {
			args[k] = v
		}
	}
	return Request{
		Command: command, Sandbox: getenv("CNI_CONTAINERID"),
		Namespace: args["K8S_POD_NAMESPACE"], Pod: args["K8S_POD_NAME"], UID: args["K8S_POD_UID"],
	}
}

func call(socket string, req Request, patience time.Duration) error {
	conn, err := dial(socket, patience)
	if err != nil {
		return fmt.Errorf("reach the policy controller of atoll: %w", err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(timeout))
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return fmt.Errorf("ask the policy controller: %w", err)
	}
	var reply Reply
	if err := json.NewDecoder(conn).Decode(&reply); err != nil {
		return fmt.Errorf("hear from the policy controller: %w", err)
	}
	if reply.Error != "" {
		return errors.New(reply.Error)
	}
	return nil
}

// dial connects to the socket, which may not be there yet, or have been left by a process that is gone.
func dial(socket string, patience time.Duration) (net.Conn, error) {
	const pause = 20 * time.Millisecond
	for end := time.Now().Add(patience); ; time.Sleep(pause) {
		conn, err := net.DialTimeout("unix", socket, timeout)
		absent := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
		if !absent || time.Now().After(end) {
			return conn, err
		}
	}
}

// fail writes an error as CNI wants it: on standard output.
func fail(stdout io.Writer, version string, code int, err error) int {
	if version == "" {
		version = "1.0.0"
	}
	_ = json.NewEncoder(stdout).Encode(map[string]any{"cniVersion": version, "code": code, "msg": err.Error()})
	return 1
}
