package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/datastore"
	"github.com/atollhq/atoll/pkg/kube/apiserver"
	"github.com/atollhq/atoll/pkg/kube/controllers"
	"github.com/atollhq/atoll/pkg/kube/election"
	"github.com/atollhq/atoll/pkg/kube/process"
	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/run"
)

// TestLostLeasesEndNothing runs a real API server, controller manager and scheduler in this process and takes both leases away again
// and again: 5 times, or 100 times with ATOLL_SOAK set. After each loss both must stop and lead again, in the same process, and the
// controllers must work: a namespace gets its service account.
func TestLostLeasesEndNothing(t *testing.T) {
	rounds := 5
	if os.Getenv("ATOLL_SOAK") != "" {
		rounds = 100
	}
	cfg := config.Default()
	log := slog.New(slog.DiscardHandler)
	if _, err := process.Init(process.Config{}, log); err != nil {
		t.Fatal(err)
	}
	cfg.DataDir, cfg.NodeName, cfg.Audit = t.TempDir(), "test", false
	p := newPaths(cfg.DataDir)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr("192.0.2.1") // for the endpoint of the Service; nothing connects to it
	if _, err := pki.Ensure(cfg.DataDir, pki.Subject{NodeName: "test", APIServer: "https://" + listener.Addr().String()}, pki.NewClock(cfg.DataDir, time.Time{}), log); err != nil {
		t.Fatal(err)
	}
	if err := writeServerFiles(cfg, p); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(cfg.DataDir, "s")
	admin := lazyClient(t, p.AdminKubeconfig)

	group := run.Group{Log: log}
	store := group.Add(datastore.New(datastore.Config{Dir: p.datastore, Socket: socket}, log))
	api := group.Add(apiserver.New(apiserver.Config{Args: apiServerArgs(cfg, p, addr, "unix://"+socket), Listener: listener}, log), run.Needs(store))
	kcm, scheduler := controllerManagerArgs(cfg, p), schedulerArgs(cfg, p)
	kcm["secure-port"], scheduler["secure-port"] = "0", "0"
	elections := []*election.Election{
		election.New(shortLease("kube-controller-manager", admin), controllers.Manager(kcm, nil), log),
		election.New(shortLease("kube-scheduler", admin), controllers.Scheduler(scheduler, nil), log),
	}
	for _, e := range elections {
		group.Add(e, run.Needs(api))
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- group.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the group ended with %v", err)
		}
	})

	var goroutines int
	leadAgain := func(after []int64) {
		for i, e := range elections {
			waitFor(t, time.Minute, e.Name()+" leads again", func() bool { return e.Leading() && e.Terms() > after[i] })
		}
	}
	terms := make([]int64, len(elections))
	leadAgain(terms)
	for round := range rounds {
		makeNamespace(t, admin, fmt.Sprintf("round-%d", round))
		if round == 1 {
			goroutines = runtime.NumGoroutine()
		}
		for i, e := range elections {
			terms[i] = e.Terms()
			steal(t, admin, e.Name())
		}
		leadAgain(terms) // a new term begins only after the work of the old one has ended
		select {
		case err := <-done:
			t.Fatalf("round %d: the group ended: %v", round, err)
		default:
		}
	}
	makeNamespace(t, admin, "end")
	if now := runtime.NumGoroutine(); now > goroutines+goroutines/5 {
		t.Errorf("%d goroutines after %d rounds, %d in the second", now, rounds, goroutines)
	}
}

func shortLease(name string, client kubernetes.Interface) election.Config {
	return election.Config{Name: name, Identity: "test", Client: client, LeaseDuration: 2 * time.Second, RenewDeadline: 1500 * time.Millisecond, RetryPeriod: 200 * time.Millisecond}
}

func lazyClient(t *testing.T, kubeconfig string) kubernetes.Interface {
	t.Helper()
	client, err := connect(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// steal makes somebody else the holder of a lease, until it expires.
func steal(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	waitFor(t, 10*time.Second, "the lease of "+name+" is taken away", func() bool {
		lease, err := client.CoordinationV1().Leases("kube-system").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return false
		}
		thief, now := "thief", metav1.NowMicro()
		lease.Spec.HolderIdentity, lease.Spec.RenewTime = &thief, &now
		_, err = client.CoordinationV1().Leases("kube-system").Update(t.Context(), lease, metav1.UpdateOptions{})
		return err == nil
	})
}

// makeNamespace shows that the controllers work: one of them gives each namespace a service account.
func makeNamespace(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := client.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, time.Minute, "the service account of "+name, func() bool {
		_, err := client.CoreV1().ServiceAccounts(name).Get(t.Context(), "default", metav1.GetOptions{})
		return err == nil
	})
}

func waitFor(t *testing.T, limit time.Duration, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !done(); {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond) // polls a real process
	}
}
