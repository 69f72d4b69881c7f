package registries_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestDaemonPulls has the built containerd pull through a mirror with a private authority and a password, as the kubelet asks it to.
func TestDaemonPulls(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to unpack an image")
	}
	binary, err := filepath.Abs("../../../bin/atoll")
	must(t, err)
	if _, err := os.Stat(binary); err != nil {
		t.Skip("needs bin/atoll: run make build")
	}
	r := start(t, func(r *registry) { r.basic = "u:p" })
	c, err := load(t, fill("mirrors: {'*': {endpoint: ['https://HOST']}}\nconfigs: {'HOST': {tls: {ca_file: DIR/ca.pem}, auth: {username: u, password: p}}}", r))
	must(t, err)

	dir, err := os.MkdirTemp("", "atoll") // the path of a socket is limited to 107 letters
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, c.Write(filepath.Join(dir, "certs.d")))
	if _, err := c.WriteAuth(filepath.Join(dir, "config.d", "10-registries.toml")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "config.toml"), fmt.Sprintf(`version = 3
root = "%[1]s/root"
state = "%[1]s/state"
imports = ["%[1]s/config.d/*.toml"]
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = "%[1]s/c.sock"
[ttrpc]
  address = "%[1]s/t.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "native"
  disable_snapshot_annotations = true
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "%[1]s/certs.d"
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["%[1]s/cni"]
  conf_dir = "%[1]s/net.d"
`, dir))
	log := startDaemon(t, binary, filepath.Join(dir, "config.toml"))

	conn, err := grpc.NewClient("unix://"+filepath.Join(dir, "c.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	pulled, err := runtimeapi.NewImageServiceClient(conn).PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "shop.invalid/app:1"}}, grpc.WaitForReady(true))
	if err != nil {
		said, _ := os.ReadFile(log)
		t.Fatalf("pull: %v\n%s", err, said)
	}
	if _, ok := r.blobs[pulled.ImageRef]; !ok {
		t.Errorf("pulled %s, which the mirror does not have", pulled.ImageRef)
	}
}

// startDaemon runs containerd until the test ends, and returns the path of its log.
func startDaemon(t *testing.T, binary, config string) string {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "containerd.log"))
	must(t, err)
	defer log.Close()
	cmd := exec.Command(binary, "containerd", "--config", config)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	return log.Name()
}
