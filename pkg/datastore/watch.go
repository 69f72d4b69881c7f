package datastore

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// watchServer is etcd's watch service over kine's log. It takes the place of kine's own, whose progress messages can overtake events
// (kine issue 731): the API server then takes its cache for newer than it is, and never learns of the events that follow.
//
// Every watch reads the whole log and picks its keys here, so that its cursor is true also when other keys change: all events up to
// the cursor have been sent. A progress message carries the lowest cursor of the stream's watches.
type watchServer struct {
	backend server.Backend
	notify  time.Duration // between progress messages to a watch without events
	log     *slog.Logger
}

// watchStream is one client's connection.
type watchStream struct {
	watchServer
	ctx  context.Context // the connection's
	stop context.CancelFunc
	wg   sync.WaitGroup

	// mu makes one step of: sending on the connection, and what a message says of the watches. A progress message to all watches must
	// not cross a new watch that begins earlier.
	mu      sync.Mutex
	conn    etcdserverpb.Watch_WatchServer
	watches map[int64]*watch
	lastID  int64
	wanted  int64 // revision of a progress message that was asked for; 0: none
}

// watch is one range of keys that a client follows.
type watch struct {
	id       int64
	key, end string
	start    int64
	cursor   int64 // everything up to this revision has been sent
	progress bool  // wants progress messages
	quiet    bool  // nothing was sent since the last tick
	cancel   context.CancelFunc
}

// Watch implements etcdserverpb.WatchServer.
func (s *watchServer) Watch(conn etcdserverpb.Watch_WatchServer) error {
	ctx, stop := context.WithCancel(conn.Context())
	t := &watchStream{watchServer: *s, ctx: ctx, stop: stop, conn: conn, watches: map[int64]*watch{}}
	defer t.wg.Wait()
	defer stop()
	t.wg.Go(t.tick)
	for {
		request, err := conn.Recv()
		if err != nil {
			return err
		}
		if r := request.GetCreateRequest(); r != nil {
			if err := t.create(r); err != nil {
				return err
			}
		}
		if r := request.GetCancelRequest(); r != nil {
			t.end(r.WatchId, &etcdserverpb.WatchResponse{})
		}
		if request.GetProgressRequest() != nil {
			if err := t.want(); err != nil {
				return err
			}
		}
	}
}

// Keys under which the API server and kine keep the compaction revision; see kine's pkg/server/compact.go.
const (
	compactKey     = "compact_rev_key"
	compactKeyKine = "compact_rev_key_apiserver"
)

func (t *watchStream) create(r *etcdserverpb.WatchCreateRequest) error {
	current, err := t.backend.CurrentRevision(t.ctx)
	if err != nil {
		return fmt.Errorf("read current revision: %w", err)
	}
	ctx, cancel := context.WithCancel(t.ctx)
	w := &watch{key: string(r.Key), end: string(r.RangeEnd), start: r.StartRevision, progress: r.ProgressNotify, cancel: cancel}
	if w.key == compactKey {
		w.key = compactKeyKine
	}
	if w.start == 0 {
		w.start = current + 1
	}
	w.cursor = min(w.start-1, current)

	t.mu.Lock()
	defer t.mu.Unlock()
	created := &etcdserverpb.WatchResponse{Header: header(current), Created: true}
	if r.WatchId != clientv3.AutoWatchID || r.StartRevision < 0 {
		cancel()
		created.WatchId, created.Canceled, created.CancelReason = clientv3.InvalidWatchID, true, server.ErrInvalidWatch.Error()
		return t.conn.Send(created)
	}
	t.lastID++
	w.id, created.WatchId = t.lastID, t.lastID
	if err := t.conn.Send(created); err != nil {
		cancel()
		return err
	}
	t.watches[w.id] = w
	t.wg.Go(func() { t.follow(ctx, w) })
	return nil
}

// follow sends the events of a watch until it ends.
func (t *watchStream) follow(ctx context.Context, w *watch) {
	result := t.backend.Watch(ctx, "", "", w.start)
	if result.CompactRevision != 0 {
		t.end(w.id, &etcdserverpb.WatchResponse{
			Header: header(result.CurrentRevision), CompactRevision: result.CompactRevision, CancelReason: server.ErrCompacted.Error(),
		})
		return
	}
	// kine wants the channel read to its end, also of a watch that has ended.
	for events := range result.Events {
		// What queued up meanwhile goes in the same message.
		for more := true; more && len(events) < 1000; {
			select {
			case next, ok := <-result.Events:
				events, more = append(events[:len(events):len(events)], next...), ok
			default:
				more = false
			}
		}
		t.deliver(w, events)
	}
	end := &etcdserverpb.WatchResponse{}
	select {
	case err := <-result.Errorc:
		end.CancelReason = err.Error()
	default: // ended by the client, or too slow: it begins again where it was
	}
	t.end(w.id, end)
}

// deliver sends those of the log's next events that the watch follows.
func (t *watchStream) deliver(w *watch, events []*server.Event) {
	response := &etcdserverpb.WatchResponse{WatchId: w.id}
	cursor := int64(0)
	for _, e := range events {
		if e == nil || e.KV == nil || e.KV.ModRevision < w.start {
			continue
		}
		cursor = max(cursor, e.KV.ModRevision)
		if e.InRange(w.key, w.end) {
			response.Events = append(response.Events, event(e))
			response.Header = header(e.KV.ModRevision)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.watches[w.id] == nil {
		return
	}
	if len(response.Events) > 0 {
		w.quiet = false
		if err := t.conn.Send(response); err != nil {
			t.stop()
			return
		}
	}
	w.cursor = max(w.cursor, cursor)
	t.answer()
}

// end takes a watch off the stream and tells the client.
func (t *watchStream) end(id int64, response *etcdserverpb.WatchResponse) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.watches[id]
	if w == nil {
		return
	}
	delete(t.watches, id)
	w.cancel()
	if response.Header == nil {
		response.Header = header(w.cursor)
	}
	response.WatchId, response.Canceled = id, true
	if err := t.conn.Send(response); err != nil {
		t.stop()
	}
	t.answer()
}

// want notes that the client asks for a progress message, and sends it if it is due already.
func (t *watchStream) want() error {
	current, err := t.backend.CurrentRevision(t.ctx)
	if err != nil {
		return fmt.Errorf("read current revision: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wanted = max(t.wanted, current)
	t.answer()
	return nil
}

// answer sends the progress message that was asked for once every watch is there. It is called with mu held.
func (t *watchStream) answer() {
	if t.wanted == 0 {
		return
	}
	lowest := int64(math.MaxInt64)
	for _, w := range t.watches {
		lowest = min(lowest, w.cursor)
	}
	if lowest < t.wanted {
		return
	}
	if len(t.watches) == 0 {
		lowest = t.wanted
	}
	t.wanted = 0
	if err := t.conn.Send(&etcdserverpb.WatchResponse{Header: header(lowest), WatchId: clientv3.InvalidWatchID}); err != nil {
		t.stop()
	}
}

// tick sends progress to the watches that had no events for a while, so that they can begin again at a revision that still exists.
func (t *watchStream) tick() {
	ticker := time.NewTicker(t.notify)
	defer ticker.Stop()
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-ticker.C:
		}
		t.mu.Lock()
		for _, w := range t.watches {
			if w.progress && w.quiet {
				if err := t.conn.Send(&etcdserverpb.WatchResponse{Header: header(w.cursor), WatchId: w.id}); err != nil {
					t.stop()
				}
			}
			w.quiet = true
		}
		t.mu.Unlock()
	}
}

func header(revision int64) *etcdserverpb.ResponseHeader {
	return &etcdserverpb.ResponseHeader{Revision: revision}
}

func event(e *server.Event) *mvccpb.Event {
	out := &mvccpb.Event{Type: mvccpb.PUT, Kv: keyValue(e.KV)}
	if e.Delete {
		out.Type = mvccpb.DELETE
	}
	if !e.Create {
		out.PrevKv = keyValue(e.PrevKV)
	}
	return out
}

func keyValue(kv *server.KeyValue) *mvccpb.KeyValue {
	if kv == nil {
		return nil
	}
	out := &mvccpb.KeyValue{
		Key: []byte(kv.Key), Value: kv.Value, Version: kv.Version, Lease: kv.Lease, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision,
	}
	if kv.Key == compactKeyKine {
		out.Key = []byte(compactKey)
		out.Version, out.Value = server.DecodeVersion(kv.Value)
	}
	return out
}
