// Command tool is the client of the test images: what a test wants to do from inside a pod, without a shell.
//
//	tool sleep [DURATION]               does nothing, for ever by default; ends at SIGTERM
//	tool get URL [TIMEOUT]              prints the body; fails when the status is not 2xx
//	tool dns NAME [SERVER:PORT]         prints addresses, sorted
//	tool tcp HOST:PORT [TIMEOUT]        fails when no connection comes about
//	tool udp HOST:PORT TEXT [TIMEOUT]   sends a datagram and prints the answer
//	tool cat FILE                       prints a file
//	tool ls FOLDER                      prints names
//	tool write FILE TEXT                writes a file and syncs it
//	tool env [NAME]                     prints the environment
//	tool id                             prints user, groups and capabilities
//	tool fail [CODE]                    ends with an exit code
//	tool loop INTERVAL COMMAND ...      does the rest again and again, with the time before each answer
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	args := os.Args[1:]
	if len(args) == 0 {
		args = []string{"sleep"} // a pod without arguments waits to be used
	}
	out, err := run(args[0], args[1:])
	fmt.Print(out)
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func run(name string, args []string) (string, error) {
	commands := map[string]func([]string) (string, error){
		"sleep": sleep, "get": get, "dns": dns, "tcp": tcp, "udp": udp, "cat": cat, "ls": ls, "write": write, "env": env, "id": id,
		"fail": fail, "loop": loop,
	}
	command, ok := commands[name]
	if !ok {
		return "", fmt.Errorf("unknown command %q", name)
	}
	return command(args)
}

// arg returns argument i or a default.
func arg(args []string, i int, otherwise string) string {
	if i < len(args) {
		return args[i]
	}
	return otherwise
}

func sleep(args []string) (string, error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if len(args) == 0 {
		<-ctx.Done()
		return "", nil
	}
	d, err := time.ParseDuration(args[0])
	if err != nil {
		return "", err
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	return "", nil
}

func get(args []string) (string, error) {
	timeout, err := time.ParseDuration(arg(args, 1, "5s"))
	if err != nil {
		return "", err
	}
	client := &http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(arg(args, 0, ""))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = errors.New(resp.Status)
	}
	return string(body), err
}

func dns(args []string) (string, error) {
	r := &net.Resolver{PreferGo: true}
	if server := arg(args, 1, ""); server != "" {
		r.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, server)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	addrs, err := r.LookupHost(ctx, arg(args, 0, ""))
	slices.Sort(addrs)
	return strings.Join(append(addrs, ""), "\n"), err
}

func tcp(args []string) (string, error) {
	timeout, err := time.ParseDuration(arg(args, 1, "3s"))
	if err != nil {
		return "", err
	}
	conn, err := net.DialTimeout("tcp", arg(args, 0, ""), timeout)
	if err != nil {
		return "", err
	}
	return "connected\n", conn.Close()
}

func udp(args []string) (string, error) {
	timeout, err := time.ParseDuration(arg(args, 2, "3s"))
	if err != nil {
		return "", err
	}
	conn, err := net.Dial("udp", arg(args, 0, ""))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, arg(args, 1, "")); err != nil {
		return "", err
	}
	if err := conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	buf := make([]byte, 64<<10)
	n, err := conn.Read(buf)
	return string(buf[:n]), err
}

func cat(args []string) (string, error) {
	data, err := os.ReadFile(arg(args, 0, ""))
	return string(data), err
}

func ls(args []string) (string, error) {
	entries, err := os.ReadDir(arg(args, 0, "/"))
	var out strings.Builder
	for _, e := range entries {
		fmt.Fprintln(&out, e.Name())
	}
	return out.String(), err
}

func write(args []string) (string, error) {
	f, err := os.Create(arg(args, 0, ""))
	if err != nil {
		return "", err
	}
	_, err = io.WriteString(f, arg(args, 1, ""))
	return "", errors.Join(err, f.Sync(), f.Close())
}

func env(args []string) (string, error) {
	if len(args) > 0 {
		return os.Getenv(args[0]) + "\n", nil
	}
	return strings.Join(append(os.Environ(), ""), "\n"), nil
}

func id([]string) (string, error) {
	status, err := os.ReadFile("/proc/self/status")
	var out strings.Builder
	for line := range strings.Lines(string(status)) {
		key, _, _ := strings.Cut(line, ":")
		if slices.Contains([]string{"Uid", "Gid", "Groups", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp"}, key) {
			out.WriteString(line)
		}
	}
	return out.String(), err
}

func fail(args []string) (string, error) {
	code, err := strconv.Atoi(arg(args, 0, "1"))
	if err != nil {
		return "", err
	}
	os.Exit(code)
	return "", nil
}

func loop(args []string) (string, error) {
	interval, err := time.ParseDuration(arg(args, 0, "1s"))
	if err != nil || len(args) < 2 {
		return "", errors.Join(err, errors.New("loop wants an interval and a command"))
	}
	for {
		out, err := run(args[1], args[2:])
		if err != nil {
			out += "error: " + err.Error()
		}
		fmt.Println(time.Now().UTC().Format("15:04:05.000"), strings.TrimSpace(out))
		time.Sleep(interval)
	}
}
