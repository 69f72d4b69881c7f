package formation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// tlsListener speaks TLS on what it accepts, without showing that to net/http: its server closes connections with an application
// protocol that it does not know. What is spoken inside is HTTP/1.1.
type tlsListener struct {
	net.Listener
	config *tls.Config
}

func newTLSListener(l net.Listener, config *tls.Config) net.Listener {
	return &tlsListener{Listener: l, config: config}
}

// Accept implements net.Listener. The handshake is made at the first read, under the deadline that the HTTP server sets for headers.
func (l *tlsListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &tlsConn{tls.Server(conn, l.config)}, nil
}

// tlsConn hides the type of the connection inside.
type tlsConn struct{ net.Conn }

type tlsConnKey struct{}

// rememberTLS is a ConnContext for an http.Server: handlers find what the client showed.
func rememberTLS(ctx context.Context, conn net.Conn) context.Context {
	hidden, ok := conn.(*tlsConn)
	if !ok {
		return ctx
	}
	return context.WithValue(ctx, tlsConnKey{}, hidden.Conn)
}

// peerCertificates returns what the client showed; nobody has verified it.
func peerCertificates(r *http.Request) []*x509.Certificate {
	conn, ok := r.Context().Value(tlsConnKey{}).(*tls.Conn)
	if !ok {
		return nil
	}
	return conn.ConnectionState().PeerCertificates
}

// servingCertificate reads a certificate again when its file has changed.
type servingCertificate struct {
	file string

	mu   sync.Mutex
	read time.Time // modification time of what was read
	pair *tls.Certificate
}

func (c *servingCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	info, err := os.Stat(c.file)
	if err != nil {
		return nil, err
	}
	if c.pair != nil && info.ModTime().Equal(c.read) {
		return c.pair, nil
	}
	pair, err := tls.LoadX509KeyPair(c.file, c.file)
	if err != nil {
		return nil, err
	}
	c.pair, c.read = &pair, info.ModTime()
	return c.pair, nil
}
