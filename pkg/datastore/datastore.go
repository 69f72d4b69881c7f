// Package datastore keeps a site's Kubernetes objects and offers them through etcd's v3 API on a Unix socket.
//
// Today it is kine on a SQLite file of one server. The node knows only Store and Config, behind which the replicated datastore takes
// its place. External databases that kine supports (Postgres, MySQL, etcd) are reached through Config.Endpoint.
//
// On disk: <dir>/state.db with its -wal and -shm files. A write is on the disk before it is acknowledged: neither a kill nor a power
// cut loses it.
package datastore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/generic"
	_ "github.com/k3s-io/kine/pkg/drivers/mysql"
	_ "github.com/k3s-io/kine/pkg/drivers/pgsql"
	_ "github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/server"
	"github.com/k3s-io/kine/pkg/tls"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/atollhq/atoll/pkg/atomicfile"
	"github.com/atollhq/atoll/pkg/remedy"
)

// CheckpointEvery is how often the write-ahead log of SQLite is moved into the database file and cut.
// kine's own checkpoint is passive with the pure-Go driver and lets the log grow without end.
const CheckpointEvery = 30 * time.Second

// Config describes a datastore.
type Config struct {
	Dir    string // folder of the database file
	Socket string // path of the Unix socket for etcd's API

	Endpoint                  string // external database instead of the file, in kine's form; may hold a password
	CAFile, CertFile, KeyFile string // for the external database
}

// ErrDamaged is returned when the database file is not a sound SQLite database.
var ErrDamaged = errors.New("the datastore file is damaged")

// New returns the component. It is ready when the socket answers.
func New(cfg Config, log *slog.Logger) *Store { return &Store{cfg: cfg, log: log} }

// Store is the datastore of one server.
type Store struct {
	cfg Config
	log *slog.Logger
}

// Name implements run.Component.
func (*Store) Name() string { return "datastore" }

// Servers returns the etcd endpoints for kube-apiserver's --etcd-servers.
func (s *Store) Servers() string { return "unix://" + s.cfg.Socket }

// Run implements run.Component.
func (s *Store) Run(ctx context.Context, ready func()) error {
	endpointURL := s.cfg.Endpoint
	file := filepath.Join(s.cfg.Dir, "state.db")
	if endpointURL == "" {
		if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
			return remedy.Wrap(fmt.Errorf("make datastore folder: %w", err), "make %s writable, or choose another --data-dir", s.cfg.Dir)
		}
		if err := Check(ctx, file); err != nil {
			return err
		}
		if err := prepare(ctx, file); err != nil {
			return fmt.Errorf("prepare datastore %s: %w", file, err)
		}
		// Names of parameters as kine translates them for the pure-Go driver.
		endpointURL = "sqlite://" + file + "?_journal_mode=WAL&_synchronous=FULL&_busy_timeout=30000&_txlock=immediate&_kine_disable_startup_vacuum=1"
	}
	if err := os.Remove(s.cfg.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove old datastore socket: %w", err)
	}
	stop, err := s.serve(ctx, endpointURL)
	if err != nil {
		if s.cfg.Endpoint != "" {
			return remedy.Wrap(fmt.Errorf("open datastore: %w", err), "check --datastore-endpoint, and that the database answers from this node")
		}
		return fmt.Errorf("open datastore %s: %w", file, err)
	}
	ready()
	if s.cfg.Endpoint == "" {
		s.checkpoint(ctx, file)
	}
	<-ctx.Done()
	stop()
	if s.cfg.Endpoint == "" {
		s.truncateLog(context.WithoutCancel(ctx), file)
	}
	return nil
}

// serve opens the database and answers on the socket until stop is called.
func (s *Store) serve(ctx context.Context, endpointURL string) (stop func(), err error) {
	var wg sync.WaitGroup
	// The database outlives ctx until the last request is answered.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			cancel()
			wg.Wait()
		}
	}()
	_, backend, err := drivers.New(ctx, &wg, &drivers.Config{
		Endpoint:              endpointURL,
		BackendTLSConfig:      tls.Config{CAFile: s.cfg.CAFile, CertFile: s.cfg.CertFile, KeyFile: s.cfg.KeyFile},
		ConnectionPoolConfig:  generic.ConnectionPoolConfig{MaxIdle: 2, MaxOpen: 8},
		CompactInterval:       5 * time.Minute,
		CompactIntervalJitter: 20,
		CompactTimeout:        5 * time.Second,
		CompactMinRetain:      1000,
		CompactBatchSize:      1000,
		PollBatchSize:         500,
	})
	if err != nil {
		return nil, err
	}
	if backend == nil {
		return nil, errors.New("an etcd of its own is not supported as a datastore")
	}
	if err := backend.Start(ctx); err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", s.cfg.Socket)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(s.cfg.Socket, 0o600); err != nil {
		listener.Close()
		return nil, err
	}
	g := grpcServer()
	bridge := server.New(backend, "unix", notifyInterval, "3.6.11")
	etcdserverpb.RegisterKVServer(g, bridge)
	etcdserverpb.RegisterLeaseServer(g, bridge)
	etcdserverpb.RegisterClusterServer(g, bridge)
	etcdserverpb.RegisterMaintenanceServer(g, bridge)
	etcdserverpb.RegisterWatchServer(g, &watchServer{backend: backend, notify: notifyInterval, log: s.log})
	wg.Go(func() {
		if err := g.Serve(listener); err != nil {
			s.log.Error("datastore socket closed", "err", err)
		}
	})
	return func() {
		timer := time.AfterFunc(stopWithin, g.Stop)
		g.GracefulStop()
		timer.Stop()
		cancel()
		wg.Wait()
	}, nil
}

const (
	notifyInterval = 5 * time.Second // between progress messages to an idle watch
	stopWithin     = 2 * time.Second // for requests and watches that are open
)

// grpcServer has the limits of etcd's own.
func grpcServer() *grpc.Server {
	return grpc.NewServer(
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 2 * time.Hour, Timeout: 20 * time.Second}),
		grpc.MaxConcurrentStreams(math.MaxUint32),
		grpc.MaxRecvMsgSize(2<<20),
		grpc.MaxSendMsgSize(math.MaxInt32),
	)
}

// prepare gives the file the view key_value, which kine looks for at its start as the table of a predecessor.
//
// kine counts the rows of key_value and of its own table, but forgets the second answer when there is no first, and with the pure-Go
// driver a forgotten answer is a read transaction that stays open for ever: the write-ahead log could never be cut.
// With the view kine reads both answers. What it takes over from the view into an empty database is the one row with which it
// begins a database anyhow.
func prepare(ctx context.Context, file string) error {
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(5000)")
	if err != nil {
		return err
	}
	defer db.Close()
	for _, statement := range []string{
		"PRAGMA journal_mode=WAL",
		"CREATE VIEW IF NOT EXISTS key_value AS SELECT 1 AS id, 'compact_rev_key' AS name, '' AS value, 0 AS ttl",
	} {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return atomicfile.SyncDir(filepath.Dir(file)) // a new file is not lost with its folder's entry
}

// Check tells whether file is a sound database, without changing it. A missing or empty file is sound.
// It reads every page, about 1 GB/s from the page cache. Errors: ErrDamaged.
func Check(ctx context.Context, file string) error {
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && info.Size() == 0) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at datastore: %w", err)
	}
	db, err := sql.Open("sqlite", "file:"+file)
	if err != nil {
		return err
	}
	defer db.Close()
	rows, err := db.QueryContext(ctx, "PRAGMA quick_check(5)")
	if err != nil {
		return damaged(file, err.Error())
	}
	defer rows.Close()
	var problems []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return damaged(file, err.Error())
		}
		if line != "ok" {
			problems = append(problems, line)
		}
	}
	if err := rows.Err(); err != nil {
		return damaged(file, err.Error())
	}
	if len(problems) > 0 {
		return damaged(file, strings.Join(problems, "; "))
	}
	return nil
}

func damaged(file, detail string) error {
	return remedy.Wrap(fmt.Errorf("%w: %s: %s", ErrDamaged, file, detail),
		"copy %s aside for rescue; put back a copy of it from before the damage, or move the folder away to begin with an empty site", filepath.Dir(file))
}

// checkpoint cuts the write-ahead log from time to time until ctx ends.
func (s *Store) checkpoint(ctx context.Context, file string) {
	tick := time.NewTicker(CheckpointEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.truncateLog(ctx, file)
		}
	}
}

// truncateLog moves the write-ahead log into the database file, makes both durable, and cuts the log to nothing.
// It uses a connection of its own, because kine does not share its pool.
func (s *Store) truncateLog(ctx context.Context, file string) {
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(2000)&_pragma=synchronous(NORMAL)")
	if err != nil {
		s.log.Error("cannot open the datastore for a checkpoint", "err", err)
		return
	}
	defer db.Close()
	var busy, logPages, moved int
	err = db.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &logPages, &moved)
	if err != nil && ctx.Err() == nil {
		s.log.Warn("datastore checkpoint failed, tried again later", "err", err)
	}
}
