package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/atollhq/atoll/tests/images"
	"github.com/atollhq/atoll/tests/lab"
)

const dataDir = "/var/lib/atoll"

const claimYAML = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 16Mi}}
`

func claimedVolume(t *testing.T, w *workloads) {
	ns := w.namespace(t, nil)
	w.apply(t, ns, claimYAML) // no class: the default one
	w.start(t, ns, tool("first", claim("/data", "data")))
	w.inPod(t, ns, "first", "tool", "write", "/data/receipt", "paid 12.50")
	first := w.waitReady(t, ns, "first")
	w.remove(t, ns, "first")

	t.Run("the next pod finds it", func(t *testing.T) {
		w.start(t, ns, tool("second", claim("/data", "data")))
		if got := w.inPod(t, ns, "second", "tool", "cat", "/data/receipt"); got != "paid 12.50" {
			t.Errorf("got %q", got)
		}
		if second := w.waitReady(t, ns, "second"); second.Spec.NodeName != first.Spec.NodeName {
			t.Errorf("first on %s, second on %s: that cannot be the same volume", first.Spec.NodeName, second.Spec.NodeName)
		}
	})
	t.Run("a restart of atoll on its node leaves pod and data alone", func(t *testing.T) {
		before := w.waitReady(t, ns, "second")
		n := w.n1
		if before.Spec.NodeName == "n2" {
			n = w.n2
		}
		restart(t, n)
		eventually(t, 30*time.Second, "the receipt being read again", func(ctx context.Context) error {
			got, err := w.exec(ctx, ns, "second", "tool", "cat", "/data/receipt") // refused until the kubelet has heard of the pod
			if err == nil && got != "paid 12.50" {
				err = errFinal{fmt.Errorf("got %q", got)}
			}
			return err
		})
		after := w.waitReady(t, ns, "second")
		if a, b := containerOf(before), containerOf(after); a != b {
			t.Errorf("container %s became %s", a, b)
		}
	})
	t.Run("a deleted claim takes its data with it", func(t *testing.T) {
		ctx := within(t, 20*time.Second, "deleting")
		pvc, err := w.kube.CoreV1().PersistentVolumeClaims(ns).Get(ctx, "data", metav1.GetOptions{})
		must(t, err)
		w.remove(t, ns, "second")
		must(t, w.kube.CoreV1().PersistentVolumeClaims(ns).Delete(ctx, "data", metav1.DeleteOptions{}))
		eventually(t, 60*time.Second, "the volume being deleted", func(ctx context.Context) error {
			_, err := w.kube.CoreV1().PersistentVolumes().Get(ctx, pvc.Spec.VolumeName, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			return errors.Join(err, errors.New("it is still there"))
		})
	})
}

// containerOf identifies the running container of a pod and how often it was started.
func containerOf(p *corev1.Pod) string {
	c := p.Status.ContainerStatuses[0]
	return fmt.Sprintf("%s, restarts %d", c.ContainerID, c.RestartCount)
}

func configuration(t *testing.T, w *workloads) {
	ns := w.namespace(t, nil)
	w.apply(t, ns, `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {currency: EUR, till.conf: "drawer=2\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: pin}
stringData: {code: "4711"}
`)
	w.start(t, ns, tool("reader",
		volume("/config", corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}),
		volume("/secret", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "pin"}}),
		func(p *corev1.Pod) {
			p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{
				{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}},
				{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "pin"}}, Prefix: "PIN_"},
			}
		}))
	for _, tt := range []struct{ argv, want string }{
		{"cat /config/till.conf", "drawer=2\n"}, {"cat /secret/code", "4711"}, {"env currency", "EUR\n"}, {"env PIN_code", "4711\n"},
	} {
		if got := w.inPod(t, ns, "reader", append([]string{"tool"}, strings.Fields(tt.argv)...)...); got != tt.want {
			t.Errorf("tool %s: %q, want %q", tt.argv, got, tt.want)
		}
	}
}

func encryptedAtRest(t *testing.T, w *workloads) {
	ns := w.namespace(t, nil)
	const open, hidden = "plainly-visible-7f3a9c", "must-never-be-seen-51e0b2"
	w.apply(t, ns, `
apiVersion: v1
kind: Secret
metadata: {name: at-rest}
stringData: {key: `+hidden+`}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: at-rest}
data: {key: `+open+`}
`)
	got, err := w.kube.CoreV1().Secrets(ns).Get(within(t, 10*time.Second, "reading the Secret"), "at-rest", metav1.GetOptions{})
	must(t, err)
	if string(got.Data["key"]) != hidden {
		t.Errorf("the API gives %q", got.Data["key"])
	}
	var files [][]byte
	for _, name := range []string{"state.db", "state.db-wal"} {
		data, err := w.n1.ReadFile(dataDir + "/server/db/" + name)
		must(t, err)
		files = append(files, data)
	}
	all := bytes.Join(files, nil)
	if !bytes.Contains(all, []byte(open)) {
		t.Error("the text of the ConfigMap is not in the database files: this test could not fail")
	}
	if bytes.Contains(all, []byte(hidden)) {
		t.Error("the text of the Secret is in the database files")
	}
	if !bytes.Contains(all, []byte("k8s:enc:secretbox:v1:")) {
		t.Error("nothing in the database files is marked as encrypted")
	}
}

func (w *workloads) configMapData(ctx context.Context, ns, name string) (map[string]string, error) {
	c, err := w.kube.CoreV1().ConfigMaps(ns).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return c.Data, nil
}

func manifestsFolder(t *testing.T, w *workloads) {
	const folder = dataDir + "/server/manifests/"
	ns := w.namespace(t, nil)
	one := func(name, value string) string {
		return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s, namespace: %s}\ndata: {value: %q}\n---\n", name, ns, value)
	}
	drop := func(t *testing.T, text string) {
		t.Helper()
		must(t, w.n1.WriteFile(folder+"shop.yaml", []byte(text), 0o600))
	}
	// soon is what users are promised, stretched by the load of this machine.
	soon := 5 * time.Second
	value := func(name, want string) func(context.Context) error {
		return func(ctx context.Context) error {
			data, err := w.configMapData(ctx, ns, name)
			if err == nil && data["value"] != want {
				err = fmt.Errorf("value %q, want %q", data["value"], want)
			}
			return err
		}
	}
	gone := func(name string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := w.configMapData(ctx, ns, name)
			if apierrors.IsNotFound(err) {
				return nil
			}
			return errors.Join(err, errors.New(name+" is still there"))
		}
	}
	t.Run("a new file is applied within 5 s", func(t *testing.T) {
		began := time.Now()
		drop(t, one("a", "1")+one("b", "1"))
		eventually(t, soon, "a and b being there", value("a", "1"))
		eventually(t, soon, "a and b being there", value("b", "1"))
		t.Logf("after %s", time.Since(began).Round(10*time.Millisecond))
	})
	t.Run("a changed file is applied, an object that left it is deleted", func(t *testing.T) {
		drop(t, one("a", "2"))
		eventually(t, soon, "a having changed", value("a", "2"))
		eventually(t, 2*soon, "b being deleted", gone("b"))
	})
	t.Run("a file with a mistake changes nothing and shows in status", func(t *testing.T) {
		drop(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a\n")
		eventually(t, 30*time.Second, "status telling about the file", func(ctx context.Context) error {
			return reportMentions(ctx, w.n1, "shop.yaml")
		})
		must(t, value("a", "2")(within(t, 10*time.Second, "reading a")))
	})
	t.Run("a corrected file is applied", func(t *testing.T) {
		drop(t, one("a", "3"))
		eventually(t, 2*soon, "a having changed", value("a", "3"))
	})
	t.Run("a restart prunes nothing that has a file", func(t *testing.T) {
		before, err := w.kube.CoreV1().ConfigMaps(ns).Get(within(t, 10*time.Second, "reading"), "a", metav1.GetOptions{})
		must(t, err)
		restart(t, w.n1)
		drop(t, one("a", "4")) // applied after everything that was there
		eventually(t, 20*time.Second, "a having changed", value("a", "4"))
		after, err := w.kube.CoreV1().ConfigMaps(ns).Get(within(t, 10*time.Second, "reading"), "a", metav1.GetOptions{})
		must(t, err)
		if before.UID != after.UID {
			t.Error("a was deleted and made again")
		}
	})
	t.Run("a removed file takes its objects with it", func(t *testing.T) {
		onNode(t, w.n1, "rm", folder+"shop.yaml")
		eventually(t, 2*soon, "a being deleted", gone("a"))
	})
}

func imagesFolder(t *testing.T, w *workloads) {
	const folder = dataDir + "/agent/images/"
	ns := w.namespace(t, nil)
	program := strings.TrimSuffix(archives(t)[images.Hello], "hello.tar") + "programs/hello"
	archive := func(ref string) []byte {
		var out bytes.Buffer
		must(t, images.Pack(&out, images.Image{Ref: ref, Labels: map[string]string{"made-for": ref}}, program))
		return out.Bytes()
	}
	compressed := func(data []byte) []byte {
		enc, err := zstd.NewWriter(nil)
		must(t, err)
		return enc.EncodeAll(data, nil)
	}
	// As cp does it: the file grows under its name.
	put := func(t *testing.T, n *lab.Node, name string, data []byte) {
		t.Helper()
		must(t, n.WriteFile(folder+name, data, 0o644))
	}
	whole := archive("registry.atoll.test/whole:1")
	put(t, w.n2, "dropped.tar", archive("registry.atoll.test/dropped:1"))
	put(t, w.n2, "packed.tar.zst", compressed(archive("registry.atoll.test/packed:1")))
	put(t, w.n2, "broken.tar", whole[:len(whole)/2])

	never := func(p *corev1.Pod) { p.Spec.Containers[0].ImagePullPolicy = corev1.PullNever }
	for _, name := range []string{"dropped", "packed"} {
		t.Run(name+" is loaded, runs and is pinned", func(t *testing.T) {
			ref := "registry.atoll.test/" + name + ":1"
			eventually(t, 60*time.Second, ref+" being loaded and pinned", func(ctx context.Context) error {
				out, err := w.n2.Exec(ctx, "atoll", "ctr", "--namespace", "k8s.io", "images", "list", "name=="+ref)
				if err == nil && (!strings.Contains(out, ref) || !strings.Contains(out, "io.cri-containerd.pinned=pinned")) {
					err = errors.New(out)
				}
				return err
			})
			w.start(t, ns, pod(name, ref, onto("n2"), never))
		})
	}
	t.Run("a truncated archive shows in status, with a remedy", func(t *testing.T) {
		eventually(t, 60*time.Second, "status telling about the archive", func(ctx context.Context) error {
			return reportMentions(ctx, w.n2, "broken.tar")
		})
		r := runOnNode(t, w.n2, "atoll", "status")
		wantContains(t, "status", r.out, "broken.tar", "Try: copy broken.tar to this node again")
	})
	t.Run("when it is whole it is loaded and the complaint is gone", func(t *testing.T) {
		put(t, w.n2, "broken.tar", whole)
		eventually(t, 60*time.Second, "the complaint being gone", func(ctx context.Context) error {
			if err := reportMentions(ctx, w.n2, "broken.tar"); err == nil {
				return errors.New("status still tells about it")
			} else if !errors.Is(err, errNotMentioned) {
				return err
			}
			return nil
		})
		w.start(t, ns, pod("whole", "registry.atoll.test/whole:1", onto("n2"), never))
	})
	t.Run("an image whose file is removed stays", func(t *testing.T) {
		onNode(t, w.n2, "rm", folder+"dropped.tar")
		w.start(t, ns, pod("dropped-again", "registry.atoll.test/dropped:1", onto("n2"), never))
	})
}

// readable makes sure that a file of the host is there before it is used.
func readable(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return data
}
