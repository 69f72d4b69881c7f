package formation_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/pkg/formation"
)

var quiet = slog.New(slog.DiscardHandler)

// startMux runs a mux on a port of the loopback until the test ends. stop ends it earlier and returns what Run did.
func startMux(t testing.TB, l net.Listener) (m *formation.Mux, stop func() error) {
	t.Helper()
	m = formation.NewMux(l, quiet)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	ready := make(chan struct{})
	go func() { done <- m.Run(ctx, func() { close(ready) }) }()
	<-ready
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(10 * time.Second):
			return errors.New("the mux does not stop")
		}
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return m, stop
}

func loopback(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve answers on l with a word, over TLS and HTTP/2 where the client wants it.
func serve(t testing.TB, l net.Listener, word string, protocols ...string) {
	t.Helper()
	pair := selfSigned(t)
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, word+" "+r.Proto+" "+r.RemoteAddr)
		}),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: protocols},
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          slog.NewLogLogger(quiet.Handler(), slog.LevelDebug),
	}
	if protocols[0] == formation.Protocol {
		go func() { _ = server.Serve(formation.NewTLSListener(l, server.TLSConfig)) }()
	} else {
		go func() { _ = server.ServeTLS(l, "", "") }()
	}
	t.Cleanup(func() { _ = server.Close() })
}

func clientFor(t testing.TB, protocols ...string) *http.Client {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: protocols}, ForceAttemptHTTP2: len(protocols) == 0}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func fetch(t testing.TB, c *http.Client, addr net.Addr, body io.Reader) string {
	t.Helper()
	response, err := c.Post("https://"+addr.String()+"/x", "text/plain", body)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestMuxSortsByProtocol(t *testing.T) {
	l := loopback(t)
	m, _ := startMux(t, l)
	serve(t, m.API(), "api", "h2", "http/1.1")
	serve(t, m.Supervisor(), "supervisor", formation.Protocol)
	for _, row := range []struct {
		name      string
		protocols []string
		want      string
	}{
		{"kubectl, HTTP/2", nil, "api HTTP/2.0 127.0.0.1:"},
		{"HTTP/1.1", []string{"http/1.1"}, "api HTTP/1.1 127.0.0.1:"},
		{"our node", []string{formation.Protocol}, "supervisor HTTP/1.1 127.0.0.1:"},
	} {
		c := clientFor(t, row.protocols...)
		for range 3 { // the second and third may go over the same connection
			if got := fetch(t, c, l.Addr(), strings.NewReader(strings.Repeat("x", 1<<20))); !strings.HasPrefix(got, row.want) {
				t.Errorf("%s: answer %q, want %q", row.name, got, row.want)
			}
		}
	}
	if m.API().Addr() != l.Addr() {
		t.Errorf("address %v", m.API().Addr())
	}
}

func TestMuxLeavesWhatIsNotTLSToTheAPI(t *testing.T) {
	l := loopback(t)
	m, _ := startMux(t, l)
	serve(t, m.API(), "api", "h2", "http/1.1")
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	answer, _ := io.ReadAll(conn)
	if !strings.Contains(string(answer), "Client sent an HTTP request to an HTTPS server") {
		t.Errorf("answer %q", answer)
	}
}

func TestConnectionsWaitForAService(t *testing.T) {
	l := loopback(t)
	m, _ := startMux(t, l)
	got := make(chan string, 1)
	c := clientFor(t)
	go func() {
		response, err := c.Get("https://" + l.Addr().String())
		if err != nil {
			got <- err.Error()
			return
		}
		defer response.Body.Close()
		data, _ := io.ReadAll(response.Body)
		got <- string(data)
	}()
	// Nothing may come while nobody accepts; the connection of the supervisor passes by.
	serve(t, m.Supervisor(), "supervisor", formation.Protocol)
	if s := fetch(t, clientFor(t, formation.Protocol), l.Addr(), nil); !strings.HasPrefix(s, "supervisor") {
		t.Error(s)
	}
	select {
	case s := <-got:
		t.Fatalf("answer %q without a service", s)
	default:
	}
	serve(t, m.API(), "api", "h2")
	if s := <-got; !strings.HasPrefix(s, "api") {
		t.Error(s)
	}
}

func TestClosingOneServiceLeavesTheOther(t *testing.T) {
	l := loopback(t)
	m, _ := startMux(t, l)
	serve(t, m.Supervisor(), "supervisor", formation.Protocol)

	waiting, err := net.Dial("tcp", l.Addr().String()) // queued for the API, never accepted
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	_, _ = waiting.Write(hello(t, "h2"))
	blocked := make(chan error, 1)
	first, err := m.API().Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	go func() { _, err := m.API().Accept(); blocked <- err }()
	if err := m.API().Close(); err != nil {
		t.Error(err)
	}
	if err := <-blocked; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept returned %v", err)
	}
	if err := m.API().Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	// One that was accepted lives on.
	if n, err := first.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("accepted connection: %d, %v", n, err)
	}
	// New ones for the closed service end at once, the other service works.
	late, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	_, _ = late.Write(hello(t, "h2"))
	_ = late.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := late.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Errorf("late connection: %v", err)
	}
	if s := fetch(t, clientFor(t, formation.Protocol), l.Addr(), nil); !strings.HasPrefix(s, "supervisor") {
		t.Error(s)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func TestMuxStops(t *testing.T) {
	l := loopback(t)
	m, stop := startMux(t, l)
	slow, err := net.Dial("tcp", l.Addr().String()) // says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	queued, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer queued.Close()
	_, _ = queued.Write(hello(t, "h2"))
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for name, conn := range map[string]net.Conn{"slow": slow, "queued": queued} {
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("%s connection: %v", name, err)
		}
	}
	for _, end := range []net.Listener{m.API(), m.Supervisor()} {
		if _, err := end.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept returned %v", err)
		}
	}
	if again, err := net.Listen("tcp", l.Addr().String()); err != nil {
		t.Errorf("the port is not free: %v", err)
	} else {
		_ = again.Close()
	}
}

func TestSlowClientsDoNotKeepOthersOut(t *testing.T) {
	l := loopback(t)
	m, _ := startMux(t, l)
	serve(t, m.API(), "api", "h2")
	slow := make([]net.Conn, 0, formation.MaxHellos+50)
	for range cap(slow) {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write([]byte{22, 3, 1}) // the start of a greeting, and no more
		slow = append(slow, conn)
	}
	if s := fetch(t, clientFor(t), l.Addr(), nil); !strings.HasPrefix(s, "api") {
		t.Error(s)
	}
	_ = slow[0].SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := slow[0].Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the oldest slow connection is still open: %v", err)
	}
}

func TestSilentClientIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, row := range []struct {
			name string
			send []byte
		}{
			{"silent", nil},
			{"half a header", []byte{22, 3}},
			{"half a greeting", hello(t, "h2")[:40]},
		} {
			client, server := net.Pipe()
			go func() { _, _ = client.Write(row.send) }()
			began := time.Now()
			_, _, err := formation.ReadHello(server, 10*time.Second)
			if took := time.Since(began); !isTimeout(err) || took != 10*time.Second {
				t.Errorf("%s: %v after %s", row.name, err, took)
			}
			_, _ = client.Close(), server.Close()
		}
	})
}

func TestDrippingClientIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		done := make(chan struct{})
		go func() { // a byte a second would last for minutes
			defer close(done)
			for _, b := range hello(t, "h2") {
				if _, err := client.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}()
		began := time.Now()
		_, _, err := formation.ReadHello(server, 10*time.Second)
		if took := time.Since(began); !isTimeout(err) || took != 10*time.Second {
			t.Errorf("%v after %s", err, took)
		}
		_, _ = client.Close(), server.Close()
		<-done
	})
}

// brokenListener fails a few times before it works.
type brokenListener struct {
	net.Listener
	failures atomic.Int32
}

func (b *brokenListener) Accept() (net.Conn, error) {
	if b.failures.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return b.Listener.Accept()
}

func TestAcceptErrorsPass(t *testing.T) {
	l := &brokenListener{Listener: loopback(t)}
	l.failures.Store(6)
	m, stop := startMux(t, l)
	serve(t, m.API(), "api", "h2")
	if s := fetch(t, clientFor(t), l.Addr(), nil); !strings.HasPrefix(s, "api") {
		t.Error(s)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestAcceptErrorsDoNotKeepTheMuxFromStopping(t *testing.T) {
	l := &brokenListener{Listener: loopback(t)}
	l.failures.Store(1 << 30)
	_, stop := startMux(t, l)
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestListenerClosedByOthersIsAnError(t *testing.T) {
	l := loopback(t)
	m := formation.NewMux(l, quiet)
	done := make(chan error, 1)
	go func() { done <- m.Run(context.Background(), func() {}) }()
	_ = l.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run returned %v", err)
	}
}

func TestFullQueueClosesTheNewest(t *testing.T) {
	l := loopback(t)
	m, _ := startMux(t, l)
	greeting := hello(t, "h2")
	conns := make([]net.Conn, formation.MaxQueue+1)
	for i := range conns {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write(greeting)
		conns[i] = conn
	}
	closed := make(chan struct{}, len(conns))
	for _, conn := range conns {
		go func() {
			_, _ = conn.Read(make([]byte, 1))
			closed <- struct{}{}
		}()
	}
	<-closed // one too many
	for range formation.MaxQueue {
		conn, err := m.API().Accept()
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(greeting))
		if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, greeting) {
			t.Fatalf("the greeting arrived as %x, %v", got, err)
		}
		_ = conn.Close()
	}
}

// hello returns the greeting of a client that offers protocols.
func hello(t testing.TB, protocols ...string) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		defer client.Close()
		_ = tls.Client(client, &tls.Config{InsecureSkipVerify: true, NextProtos: protocols}).Handshake()
	}()
	_, read, err := formation.ReadHello(server, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return read
}

// fragment splits a greeting into many records, as TLS allows.
func fragment(greeting []byte, size int) []byte {
	var out []byte
	for rest := greeting[5:]; len(rest) > 0; {
		n := min(size, len(rest))
		out = append(out, 22, 3, 1, byte(n>>8), byte(n))
		out, rest = append(out, rest[:n]...), rest[n:]
	}
	return out
}

// chunks is a connection that delivers its content in pieces and then ends.
type chunks struct {
	net.Conn
	data  []byte
	piece int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.data[:min(c.piece, len(c.data))])
	c.data = c.data[n:]
	return n, nil
}
func (c *chunks) SetReadDeadline(time.Time) error { return nil }

func TestReadHello(t *testing.T) {
	ours, kube := hello(t, formation.Protocol), hello(t, "h2", "http/1.1")
	for _, row := range []struct {
		name      string
		data      []byte
		piece     int
		protocols string
		err       bool
	}{
		{"ours", ours, 1 << 20, formation.Protocol, false},
		{"of kubectl", kube, 1 << 20, "h2 http/1.1", false},
		{"byte by byte", kube, 1, "h2 http/1.1", false},
		{"in many records", fragment(kube, 7), 3, "h2 http/1.1", false},
		{"nothing offered", hello(t), 1 << 20, "", false},
		{"many offered", hello(t, strings.Fields(strings.Repeat("a-protocol ", 500)+formation.Protocol)...), 1 << 20,
			strings.Repeat("a-protocol ", 500) + formation.Protocol, false},
		{"not TLS", []byte("SSH-2.0-OpenSSH_9.2\r\n"), 1 << 20, "", false},
		{"another record", append([]byte{23, 3, 3, 0, 5}, "hello"...), 1 << 20, "", false},
		{"nonsense inside", append([]byte{22, 3, 1, 0, 8, 1, 0, 0, 4}, "abcd"...), 1 << 20, "", false},
		{"ended at once", nil, 1, "", true},
		{"ended in the middle", kube[:len(kube)-1], 1 << 20, "", true},
		{"longer than its bound", []byte(strings.Repeat(string(fragment(append(make([]byte, 5), append([]byte{1, 0, 255, 255}, make([]byte, 16000)...)...), 1000)), 2)), 1 << 20, "", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			protocols, read, err := formation.ReadHello(&chunks{data: row.data, piece: row.piece}, time.Second)
			if (err != nil) != row.err || strings.Join(protocols, " ") != row.protocols {
				t.Errorf("protocols %.60q, %v", protocols, err)
			}
			if !bytes.HasPrefix(row.data, read) || len(read) > formation.MaxHelloBytes {
				t.Errorf("%d bytes kept that are not the first of the connection", len(read))
			}
		})
	}
}

func FuzzReadHello(f *testing.F) {
	for _, seed := range [][]byte{
		nil, hello(f, formation.Protocol), hello(f, "h2", "http/1.1"), hello(f), fragment(hello(f, "h2"), 20),
		[]byte("GET / HTTP/1.1\r\n\r\n"), {22, 3, 1, 255, 255}, {22, 3, 1, 0, 4, 1, 0, 0, 0}, {0x80, 0x2e, 1, 3, 1},
	} {
		f.Add(seed, 7)
	}
	f.Fuzz(func(t *testing.T, data []byte, piece int) {
		conn := &chunks{data: data, piece: max(1, piece)}
		_, read, err := formation.ReadHello(conn, time.Second)
		if len(read) > formation.MaxHelloBytes {
			t.Errorf("kept %d bytes", len(read))
		}
		// Whoever gets the connection must see every byte once, in order.
		if err == nil && !bytes.Equal(append(bytes.Clone(read), conn.data...), data) {
			t.Error("bytes were lost")
		}
	})
}

func BenchmarkMux(b *testing.B) {
	l := loopback(b)
	m, _ := startMux(b, l)
	go func() {
		for {
			conn, err := m.API().Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	greeting := hello(b, "h2")
	b.ReportAllocs()
	for b.Loop() {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		_, _ = conn.Write(greeting)
		_, _ = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
}
