package storage_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	"github.com/atollhq/atoll/pkg/storage"
)

func TestMain(m *testing.M) {
	// This handler measures the time since the last error, which the clock of a bubble turns into decades of sleep.
	utilruntime.ErrorHandlers = nil
	os.Exit(m.Run())
}

// site is a cluster with one node that makes volumes. It lives in a synctest bubble: waiting costs no time.
type site struct {
	t      *testing.T
	client *fake.Clientset
	disk   *disk
	folder string
	stop   func()
	part   *storage.Volumes
}

func newSite(t *testing.T, folder string, objects ...runtime.Object) *site {
	s := &site{t: t, client: fake.NewClientset(objects...), disk: rootDisk(), folder: folder}
	s.start()
	return s
}

func (s *site) start() {
	s.part = storage.New(storage.Config{Client: s.client, NodeName: "n1", Folder: s.folder, Disk: s.disk}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.part.Run(ctx, func() { close(ready) }) }()
	<-ready
	s.stop = func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
	}
}

func node(name, host string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: host}}}
}

func class(change ...func(*storagev1.StorageClass)) *storagev1.StorageClass {
	mode, policy := storagev1.VolumeBindingWaitForFirstConsumer, corev1.PersistentVolumeReclaimDelete
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "local-path"}, Provisioner: storage.Provisioner, VolumeBindingMode: &mode, ReclaimPolicy: &policy}
	for _, f := range change {
		f(c)
	}
	return c
}

func claim(name string, change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	className := "local-path"
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", UID: types.UID("uid-" + name), Annotations: map[string]string{
			"volume.kubernetes.io/storage-provisioner": storage.Provisioner,
			"volume.kubernetes.io/selected-node":       "n1",
		}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &className,
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func (s *site) add(c *corev1.PersistentVolumeClaim) {
	s.t.Helper()
	if _, err := s.client.CoreV1().PersistentVolumeClaims(c.Namespace).Create(context.Background(), c, metav1.CreateOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) volume(claim string) *corev1.PersistentVolume {
	s.t.Helper()
	synctest.Wait()
	pv, err := s.client.CoreV1().PersistentVolumes().Get(context.Background(), "pvc-uid-"+claim, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return pv
}

func (s *site) phase(pv *corev1.PersistentVolume, phase corev1.PersistentVolumePhase) {
	s.t.Helper()
	pv = pv.DeepCopy()
	pv.Status.Phase = phase
	if _, err := s.client.CoreV1().PersistentVolumes().UpdateStatus(context.Background(), pv, metav1.UpdateOptions{}); err != nil {
		s.t.Fatal(err)
	}
	synctest.Wait()
}

// events returns all events that were sent, one a line. They are not read back: their names hold the time, which stands still here.
func (s *site) events() string {
	synctest.Wait()
	var out strings.Builder
	for _, a := range s.client.Actions() {
		create, ok := a.(ktesting.CreateAction)
		if !ok {
			continue
		}
		if e, ok := create.GetObject().(*corev1.Event); ok {
			out.WriteString(e.InvolvedObject.Name + " " + e.Reason + ": " + e.Message + "\n")
		}
	}
	return out.String()
}

func TestVolumeFromClaimToDeletion(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "storage")
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, folder, node("n1", "host-1"), class())
		defer func() { s.stop() }()
		s.add(claim("data"))
		pv := s.volume("data")
		if pv == nil {
			t.Fatalf("no volume; events:\n%s", s.events())
		}
		path := filepath.Join(folder, "pvc-uid-data_shop_data")
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o777 {
			t.Errorf("folder: %v", err)
		}
		affinity := pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0]
		switch {
		case pv.Spec.Local == nil || pv.Spec.Local.Path != path:
			t.Errorf("source %+v", pv.Spec.PersistentVolumeSource)
		case affinity.Key != corev1.LabelHostname || affinity.Values[0] != "host-1":
			t.Errorf("affinity %+v", affinity)
		case pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete || pv.Spec.StorageClassName != "local-path":
			t.Errorf("%+v", pv.Spec)
		case pv.Spec.ClaimRef.Name != "data" || pv.Spec.Capacity.Storage().String() != "1Gi" || pv.Spec.AccessModes[0] != corev1.ReadWriteOnce:
			t.Errorf("%+v", pv.Spec)
		}
		write(t, filepath.Join(path, "till.db"))
		s.phase(pv, corev1.VolumeBound)

		// A restart changes nothing.
		s.stop()
		s.start()
		synctest.Wait()
		if _, err := os.Stat(filepath.Join(path, "till.db")); err != nil {
			t.Fatal(err)
		}

		// The claim is gone but its pod, deleted by force, still has the volume mounted.
		s.disk.mounts = append(s.disk.mounts, storage.Mount{Device: "8:1", Root: path, Point: "/var/lib/kubelet/pods/x"})
		s.phase(pv, corev1.VolumeReleased)
		if s.volume("data") == nil {
			t.Fatal("a volume in use was deleted")
		}
		if events := s.events(); !strings.Contains(events, "VolumeFailedDelete: remove volume pvc-uid-data: it is still in use") {
			t.Errorf("events:\n%s", events)
		}
		if _, err := os.Stat(filepath.Join(path, "till.db")); err != nil {
			t.Fatal(err)
		}
		s.disk.mounts = s.disk.mounts[:1]
		time.Sleep(3 * time.Second) // in the bubble: the first retry
		if s.volume("data") != nil {
			t.Errorf("the volume stays; events:\n%s", s.events())
		}
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("the folder stays: %v", err)
		}
		if trash, err := os.ReadDir(filepath.Join(folder, ".deleting")); err != nil || len(trash) != 0 {
			t.Errorf("trash: %v, %v", trash, err)
		}
	})
}

func TestClaimsThatAreRefused(t *testing.T) {
	block := corev1.PersistentVolumeBlock
	for _, row := range []struct {
		name   string
		class  *storagev1.StorageClass
		change func(*corev1.PersistentVolumeClaim)
		want   string
	}{
		{"many writers", class(), func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		}, "cannot be ReadWriteMany; try: ask for ReadWriteOnce"},
		{"many readers", class(), func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadOnlyMany}
		}, "cannot be ReadOnlyMany"},
		{"block", class(), func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = &block }, "does not support block volume"},
		{"copy", class(), func(c *corev1.PersistentVolumeClaim) {
			c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "x"}
		}, "cannot begin as a copy"},
		{"selector", class(), func(c *corev1.PersistentVolumeClaim) { c.Spec.Selector = &metav1.LabelSelector{} }, "remove the selector"},
		{"parameter", class(func(c *storagev1.StorageClass) { c.Parameters = map[string]string{"pathPattern": "../../etc"} }), nil, `parameter pathPattern: "../../etc"`},
	} {
		t.Run(row.name, func(t *testing.T) {
			folder := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, folder, node("n1", "n1"), row.class)
				defer func() { s.stop() }()
				c := claim("data")
				if row.change != nil {
					row.change(c)
				}
				s.add(c)
				if s.volume("data") != nil {
					t.Error("it got a volume")
				}
				if events := s.events(); !strings.Contains(events, "data ProvisioningFailed: ") || !strings.Contains(events, row.want) {
					t.Errorf("events:\n%s", events)
				}
				before := len(s.client.Actions())
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				for _, a := range s.client.Actions()[before:] {
					if a.GetVerb() != "watch" && a.GetVerb() != "list" {
						t.Errorf("tried again and again: %s %s", a.GetVerb(), a.GetResource().Resource)
					}
				}
				if left, _ := os.ReadDir(folder); len(left) != 0 {
					t.Errorf("left on disk: %v", left)
				}
			})
		})
	}
}

func TestFolderPerNamespace(t *testing.T) {
	folder := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, folder, node("n1", "n1"), class(func(c *storagev1.StorageClass) { c.Parameters = map[string]string{"perNamespace": "true"} }))
		defer func() { s.stop() }()
		s.add(claim("data", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
		}))
		pv := s.volume("data")
		if pv == nil || pv.Spec.Local.Path != filepath.Join(folder, "shop", "pvc-uid-data_shop_data") {
			t.Fatalf("%+v; events:\n%s", pv, s.events())
		}
		s.phase(pv, corev1.VolumeReleased)
		if s.volume("data") != nil {
			t.Error("the volume stays")
		}
		if _, err := os.Stat(filepath.Join(folder, "shop")); !os.IsNotExist(err) {
			t.Errorf("the namespace's folder stays: %v", err)
		}
	})
}

func TestOtherNodesAreLeftAlone(t *testing.T) {
	folder := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		foreign := &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "pvc-uid-far", Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": storage.Provisioner, "atoll.dev/node": "n2"}},
			Spec: corev1.PersistentVolumeSpec{
				PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
				PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: filepath.Join(folder, "pvc-uid-far_shop_far")}},
			},
			Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeReleased},
		}
		write(t, filepath.Join(folder, "pvc-uid-far_shop_far", "file"))
		s := newSite(t, folder, node("n1", "n1"), class(), foreign)
		defer func() { s.stop() }()
		s.add(claim("there", func(c *corev1.PersistentVolumeClaim) { c.Annotations["volume.kubernetes.io/selected-node"] = "n2" }))
		s.add(claim("nowhere", func(c *corev1.PersistentVolumeClaim) { delete(c.Annotations, "volume.kubernetes.io/selected-node") }))
		time.Sleep(time.Minute)
		if s.volume("there") != nil || s.volume("nowhere") != nil || s.volume("far") == nil {
			t.Error("this node did another one's work")
		}
		if _, err := os.Stat(filepath.Join(folder, "pvc-uid-far_shop_far", "file")); err != nil {
			t.Error(err)
		}
	})
}

func TestDiskWithoutRoom(t *testing.T) {
	folder := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, folder, node("n1", "n1"), class())
		defer func() { s.stop() }()
		s.disk.free = 1 << 20
		s.add(claim("data"))
		synctest.Wait()
		c, err := s.client.CoreV1().PersistentVolumeClaims("shop").Get(context.Background(), "data", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, still := c.Annotations["volume.kubernetes.io/selected-node"]; still {
			t.Error("the scheduler was not asked for another node")
		}
		if events := s.events(); !strings.Contains(events, "the volume wants 1.0 GiB") || !strings.Contains(events, "; try: ask for less") {
			t.Errorf("events:\n%s", events)
		}
		// The scheduler chooses this node again: no ping-pong, but a volume once there is room.
		c.Annotations["volume.kubernetes.io/selected-node"] = "n1"
		if _, err := s.client.CoreV1().PersistentVolumeClaims("shop").Update(context.Background(), c, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		c, _ = s.client.CoreV1().PersistentVolumeClaims("shop").Get(context.Background(), "data", metav1.GetOptions{})
		if c.Annotations["volume.kubernetes.io/selected-node"] != "n1" {
			t.Error("sent back to the scheduler again")
		}
		s.disk.free = 1 << 40
		time.Sleep(6 * time.Minute)
		if s.volume("data") == nil {
			t.Errorf("no volume although there is room; events:\n%s", s.events())
		}
	})
}

// The API server takes the volume but its answer is lost, then it is away for long: a pod may have the folder already, so it must not be
// taken back.
func TestVolumeIsSavedWhenTheAPIServerIsBack(t *testing.T) {
	folder := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		away, first := true, true
		s := &site{t: t, client: fake.NewClientset(node("n1", "n1"), class()), disk: rootDisk(), folder: folder}
		s.client.PrependReactor("create", "persistentvolumes", func(a ktesting.Action) (bool, runtime.Object, error) {
			if !away {
				return false, nil, nil
			}
			if create, ok := a.(ktesting.CreateAction); ok && first {
				first = false
				if err := s.client.Tracker().Add(create.GetObject()); err != nil {
					t.Error(err)
				}
			}
			return true, nil, context.DeadlineExceeded
		})
		s.start()
		defer func() { s.stop() }()
		s.add(claim("data"))
		synctest.Wait()
		file := filepath.Join(folder, "pvc-uid-data_shop_data", "till.db")
		write(t, file)
		time.Sleep(20 * time.Minute)
		away = false
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		if _, err := os.Stat(file); err != nil {
			t.Errorf("the folder was taken back: %v", err)
		}
		if s.volume("data") == nil {
			t.Error("the volume was never saved")
		}
	})
}

func TestProblems(t *testing.T) {
	folder := t.TempDir()
	lost := filepath.Join(folder, "pvc-uid-lost_shop_lost")
	write(t, filepath.Join(folder, "pvc-old_shop_x", "file"))
	write(t, filepath.Join(folder, ".deleting", "pvc-1_a_b-x", "file"))
	longAgo := time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC) // the clock of the bubble starts in 2000
	if err := os.Chtimes(filepath.Join(folder, "pvc-old_shop_x"), longAgo, longAgo); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, folder, node("n1", "n1"), class(), claim("lost", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "pvc-uid-lost" }), &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "pvc-uid-lost", Annotations: map[string]string{"atoll.dev/node": "n1"}},
			Spec: corev1.PersistentVolumeSpec{
				ClaimRef:               &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: "shop", Name: "lost", APIVersion: "v1"},
				PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: lost}},
			},
			Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound},
		})
		defer func() { s.stop() }()
		synctest.Wait()
		var text strings.Builder
		for _, err := range s.part.Problems() {
			text.WriteString(err.Error() + "\n")
		}
		if got := text.String(); !strings.Contains(got, "volume pvc-uid-lost (claim shop/lost) has no folder on this node") || !strings.Contains(got, "pvc-old_shop_x belongs to no volume") {
			t.Errorf("problems:\n%s", got)
		}
		if events := s.events(); !strings.Contains(events, "lost VolumeDataMissing") {
			t.Errorf("events:\n%s", events)
		}
		if left, _ := os.ReadDir(filepath.Join(folder, ".deleting")); len(left) != 0 {
			t.Error("what an earlier process left to delete is still there")
		}
		if _, err := os.Stat(lost); !os.IsNotExist(err) {
			t.Error("an empty folder took the place of lost data")
		}
		if err := os.Mkdir(lost, 0o777); err != nil {
			t.Fatal(err)
		}
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		if n := len(s.part.Problems()); n != 1 {
			t.Errorf("%d problems after the folder came back: %v", n, s.part.Problems())
		}
	})
}

func TestFolderThatCannotBeMade(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	write(t, file)
	part := storage.New(storage.Config{Client: fake.NewClientset(), NodeName: "n1", Folder: filepath.Join(file, "storage")}, slog.New(slog.DiscardHandler))
	if err := part.Run(context.Background(), func() { t.Error("ready") }); err == nil {
		t.Error("no error")
	}
}
