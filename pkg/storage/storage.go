// Package storage makes local volumes: a folder on the node's disk for each PersistentVolumeClaim of the class local-path.
//
// Every node runs it for the claims that the scheduler has placed there (annotation selected-node), so there is no election and no
// pod. The volume is of Kubernetes' type local, with the node in its affinity; the kubelet mounts the folder into the pod.
//
//	<folder>/<pv>_<namespace>_<claim>              a volume, mode 0777: what is inside belongs to the pod
//	<folder>/<namespace>/<pv>_<namespace>_<claim>  the same, for a class with the parameter perNamespace: "true"
//	<folder>/.deleting/                            removed volumes whose content is still being deleted
//
// # What it promises
//
// A folder is on disk for good before its volume exists in the API. A volume is only deleted when Kubernetes has released it and
// nothing on this node has it mounted any more; it is then renamed out of the way at once and emptied in the background, which a
// restart continues. Nothing outside of the folder is ever touched, whatever a volume object or a pod's symbolic link says.
//
// # What it refuses, with an event on the claim
//
// Access modes that a folder on one node cannot give (ReadWriteMany, ReadOnlyMany), raw block volumes, copies of other volumes,
// unknown class parameters, and a request that is larger than the free space. The size is not enforced afterwards: that would need
// project quotas, which not every file system has.
//
// # When a node is gone
//
// Its volumes are gone with it, and pods that use them wait for that node. Delete the claim (and the volume object, which nobody
// else may release) to let the pod start afresh elsewhere. A blank machine that took the name of an old one reports the volumes whose folder it lacks.
package storage

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/atollhq/atoll/pkg/remedy"
)

// Provisioner is the name that a StorageClass gives to have its volumes made here.
const Provisioner = "atoll.dev/local-path"

// nodeAnnotation on a volume names the node that holds its folder.
const nodeAnnotation = "atoll.dev/node"

// Config is what New needs.
type Config struct {
	Client   kubernetes.Interface // may list and watch claims, volumes and classes, get nodes, and change volumes and claims
	NodeName string
	Folder   string // made if missing
	// Disk is the real disk when nil.
	Disk Disk
	// CheckEvery is the time between looks for volumes that lack their folder; 10 min when zero.
	CheckEvery time.Duration
}

// Volumes makes and deletes the local volumes of one node. It is a component that may be started again.
type Volumes struct {
	cfg Config
	log *slog.Logger

	mu       sync.Mutex
	problems []error // of the last check
	trash    error   // what keeps removed volumes from being deleted
}

// New returns the component. It touches no disk.
func New(cfg Config, log *slog.Logger) *Volumes {
	if cfg.Disk == nil {
		cfg.Disk = osDisk{}
	}
	if cfg.CheckEvery == 0 {
		cfg.CheckEvery = 10 * time.Minute
	}
	return &Volumes{cfg: cfg, log: log.With("component", "storage")}
}

// Name implements run.Component.
func (*Volumes) Name() string { return "storage" }

// Problems returns what a person should know: volumes without their folder, folders without their volume, and removed ones that
// cannot be deleted.
func (v *Volumes) Problems() []error {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := slices.Clone(v.problems)
	if v.trash != nil {
		out = append(out, v.trash)
	}
	return out
}

// Run implements run.Component.
func (v *Volumes) Run(ctx context.Context, ready func()) error {
	folders, err := openFolders(v.cfg.Folder, v.cfg.Disk)
	if err != nil {
		return remedy.Wrap(err, "make the folder writable, or choose another with default-local-storage-path")
	}
	defer folders.Close()

	// Informers of our own: the library adds an index to one of them, which ends the process when done twice.
	factory := informers.NewSharedInformerFactoryWithOptions(v.cfg.Client, lookAgain, informers.WithTransform(withoutManagedFields))
	claims, volumes, classes := factory.Core().V1().PersistentVolumeClaims(), factory.Core().V1().PersistentVolumes(), factory.Storage().V1().StorageClasses()

	// The library reports through events and return values; its log would say the same again.
	libCtx := klog.NewContext(ctx, logr.Discard())
	events := record.NewBroadcaster(record.WithContext(libCtx))
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: v.cfg.Client.CoreV1().Events("")})
	recorder := events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: Provisioner, Host: v.cfg.NodeName})

	removed := make(chan struct{}, 1)
	maker := &maker{node: v.cfg.NodeName, client: v.cfg.Client, folders: folders, events: recorder, removed: removed, log: v.log, moved: map[string]time.Time{}}
	var workers sync.WaitGroup
	provisioner := controller.NewProvisionController(libCtx, v.cfg.Client, Provisioner, maker,
		controller.LeaderElection(false),
		controller.ResyncPeriod(lookAgain),
		controller.Threadiness(1),
		controller.FailedProvisionThreshold(0),
		controller.FailedDeleteThreshold(0),
		controller.RateLimiter(retries(2*time.Second)),
		// The other ways to save a volume delete its folder when the API server does not answer, which may be after it was saved.
		controller.CreateProvisionedPVLimiter(retries(time.Second)),
		controller.ClaimsInformer(claims.Informer()),
		controller.VolumesInformer(volumes.Informer()),
		controller.ClassesInformer(classes.Informer()),
	)
	provisioner.ControllerWaitGroup(&workers)

	factory.Start(ctx.Done())
	defer factory.Shutdown()
	defer workers.Wait()
	workers.Go(func() { provisioner.Run(libCtx) })
	workers.Go(func() { v.emptyTrash(ctx, folders, removed) })
	if cache.WaitForCacheSync(ctx.Done(), claims.Informer().HasSynced, volumes.Informer().HasSynced, classes.Informer().HasSynced) {
		ready()
		workers.Go(func() { v.checkAll(ctx, folders, volumes.Lister(), recorder) })
	}
	<-ctx.Done()
	return nil
}

// lookAgain is how often claims and volumes that wait are considered without any change to them.
const lookAgain = 15 * time.Minute

// retries are the pauses after failures: from first up to 5 min.
func retries(first time.Duration) workqueue.TypedRateLimiter[string] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[string](first, 5*time.Minute)
}

// withoutManagedFields leaves out of the caches what nobody here reads.
func withoutManagedFields(obj any) (any, error) {
	if m, ok := obj.(metav1.Object); ok {
		m.SetManagedFields(nil)
	}
	return obj, nil
}

// emptyTrash deletes the content of removed volumes: those that an earlier process left, then each when it is removed.
func (v *Volumes) emptyTrash(ctx context.Context, folders *folders, removed <-chan struct{}) {
	retry := time.NewTicker(v.cfg.CheckEvery)
	defer retry.Stop()
	for {
		err := folders.emptyTrash(ctx)
		if err != nil && ctx.Err() == nil {
			v.log.Warn("removed volumes are not deleted yet", "err", err)
			err = remedy.Wrap(err, "look for immutable files or a damaged disk, then delete %s/%s by hand", v.cfg.Folder, trashName)
		}
		v.mu.Lock()
		v.trash = err
		v.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-removed:
		case <-retry.C:
		}
	}
}

// checkAll compares volumes and folders now and then.
func (v *Volumes) checkAll(ctx context.Context, folders *folders, volumes listers.PersistentVolumeLister, events record.EventRecorder) {
	tick := time.NewTicker(v.cfg.CheckEvery)
	defer tick.Stop()
	told := map[string]bool{}
	for {
		v.check(folders, volumes, events, told)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// check looks for volumes of this node that lack their folder, which it tells once to those who use them, and for folders whose volume is gone.
func (v *Volumes) check(folders *folders, lister listers.PersistentVolumeLister, events record.EventRecorder, told map[string]bool) {
	all, err := lister.List(everything)
	if err != nil {
		return
	}
	var problems []error
	known := map[string]bool{}
	for _, pv := range all {
		known[pv.Name] = true
		if pv.Annotations[nodeAnnotation] != v.cfg.NodeName || pv.Spec.Local == nil || pv.Status.Phase != corev1.VolumeBound {
			continue
		}
		if _, err := os.Stat(pv.Spec.Local.Path); err == nil || !os.IsNotExist(err) {
			continue
		}
		problem := remedy.Wrap(fmt.Errorf("volume %s (%s) has no folder on this node: its data is lost, or its disk is not mounted", pv.Name, claimOf(pv)),
			"bring back %s, or delete the claim to start with an empty volume", pv.Spec.Local.Path)
		problems = append(problems, problem)
		if ref := pv.Spec.ClaimRef; ref != nil && !told[pv.Name] {
			told[pv.Name] = true
			events.Event(ref, corev1.EventTypeWarning, "VolumeDataMissing", sentence(problem))
		}
	}
	orphans, err := folders.orphans(known, time.Hour)
	if err != nil {
		problems = append(problems, err)
	}
	for _, path := range orphans {
		problems = append(problems, remedy.Wrap(fmt.Errorf("folder %s belongs to no volume", path), "delete it if nobody needs what is in it"))
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.problems = problems
}

func claimOf(pv *corev1.PersistentVolume) string {
	if pv.Spec.ClaimRef == nil {
		return "no claim"
	}
	return "claim " + pv.Spec.ClaimRef.Namespace + "/" + pv.Spec.ClaimRef.Name
}

// sentence is an error with its remedy on one line, for an event.
func sentence(err error) string {
	if try := remedy.Of(err); try != "" {
		return err.Error() + "; try: " + try
	}
	return err.Error()
}
