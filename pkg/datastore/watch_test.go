package datastore_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestProgressNeverOvertakesEvents writes to many keys while clients follow them and ask for progress all the time, as the API server
// does for consistent lists. An event at or below a revision that was reported as reached is one that the API server would drop.
func TestProgressNeverOvertakesEvents(t *testing.T) {
	const writers, writes, watchers = 8, 150, 30
	client, _ := open(t, t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begin, err := client.Get(ctx, "/registry/0/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}

	var watching, writing sync.WaitGroup
	for i := range watchers {
		prefix := fmt.Sprintf("/registry/%d/", i%writers)
		events := client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(begin.Header.Revision+1), clientv3.WithProgressNotify())
		watching.Go(func() {
			seen, reached := 0, int64(0)
			for seen < writes {
				response, ok := <-events
				if !ok || response.Err() != nil {
					t.Errorf("watch %s ended after %d of %d events: %v", prefix, seen, writes, response.Err())
					return
				}
				for _, e := range response.Events {
					if seen++; e.Kv.ModRevision <= reached {
						t.Errorf("watch %s: event at revision %d after progress to %d", prefix, e.Kv.ModRevision, reached)
						return
					}
				}
				if response.IsProgressNotify() {
					reached = max(reached, response.Header.Revision)
				}
			}
		})
	}
	asking, stopAsking := context.WithCancel(ctx)
	writing.Go(func() {
		for asking.Err() == nil {
			_ = client.RequestProgress(asking)
			time.Sleep(time.Millisecond) // as often as many lists at once do
		}
	})
	for w := range writers {
		writing.Go(func() {
			for i := range writes {
				key := fmt.Sprintf("/registry/%d/%d", w, i)
				if _, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, "x")).Commit(); err != nil {
					t.Errorf("create %s: %v", key, err)
					return
				}
			}
		})
	}
	watching.Wait()
	stopAsking()
	writing.Wait()
}

func TestWatch(t *testing.T) {
	client, _ := open(t, t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	create(t, client, "/registry/before", "1")
	now, err := client.Get(ctx, "/registry/before")
	if err != nil {
		t.Fatal(err)
	}
	past := client.Watch(ctx, "/registry/", clientv3.WithPrefix(), clientv3.WithRev(now.Kvs[0].ModRevision))
	future := client.Watch(ctx, "/registry/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	one := client.Watch(ctx, "/registry/after", clientv3.WithCreatedNotify())
	for name, created := range map[string]clientv3.WatchChan{"future": future, "one": one} {
		if r := <-created; !r.Created || r.Header.Revision < now.Header.Revision {
			t.Errorf("watch %s begins with %+v, want created at %d or later", name, r, now.Header.Revision)
		}
	}
	create(t, client, "/registry/other", "2")
	create(t, client, "/registry/after", "3")
	for name, row := range map[string]struct {
		events clientv3.WatchChan
		want   []string
	}{
		"from a revision": {past, []string{"/registry/before", "/registry/other", "/registry/after"}},
		"from now":        {future, []string{"/registry/other", "/registry/after"}},
		"one key":         {one, []string{"/registry/after"}},
	} {
		var got []string
		for len(got) < len(row.want) {
			r, ok := <-row.events
			if !ok {
				t.Fatalf("%s: watch ended after %v", name, got)
			}
			for _, e := range r.Events {
				got = append(got, string(e.Kv.Key))
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(row.want) {
			t.Errorf("%s: %v, want %v", name, got, row.want)
		}
	}
}

// TestProgressComesWithoutEvents: a watch whose keys do not change still learns how far the log is.
func TestProgressComesWithoutEvents(t *testing.T) {
	client, _ := open(t, t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	idle := client.Watch(ctx, "/registry/idle/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if r := <-idle; !r.Created {
		t.Fatalf("got %+v", r)
	}
	create(t, client, "/registry/busy/1", "1")
	now, err := client.Get(ctx, "/registry/busy/1")
	if err != nil {
		t.Fatal(err)
	}
	if err := client.RequestProgress(ctx); err != nil {
		t.Fatal(err)
	}
	if r := <-idle; !r.IsProgressNotify() || r.Header.Revision < now.Kvs[0].ModRevision {
		t.Errorf("got %+v, want progress to %d or later", r, now.Kvs[0].ModRevision)
	}
}
