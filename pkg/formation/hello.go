package formation

import (
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"time"
)

// A greeting is below 2 KiB as a rule; one with keys for many algorithms and a long session ticket is below this.
const maxHelloBytes = 16 << 10

var (
	errHelloRead = errors.New("greeting read")
	errHelloLong = errors.New("greeting too long")
)

// readHello reads the TLS greeting (ClientHello) of a connection. It returns the application protocols that the client offers, and all
// bytes that were read. Something that is not TLS, or a greeting that makes no sense, is no error: it offers nothing, and
// whoever gets the connection says what is wrong. Errors: the connection ended, or the greeting did not within timeout or bounds.
//
// The parser is that of crypto/tls, on a connection that it cannot write to.
func readHello(conn net.Conn, timeout time.Duration) (protocols []string, read []byte, err error) {
	if err := conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, nil, err
	}
	r := &recorder{Conn: conn}
	err = tls.Server(r, &tls.Config{
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			protocols = slices.Clone(hello.SupportedProtos)
			return nil, errHelloRead
		},
	}).Handshake()
	if r.err != nil && !errors.Is(err, errHelloRead) {
		return nil, r.read, r.err
	}
	return protocols, r.read, conn.SetReadDeadline(time.Time{})
}

// recorder keeps what is read, reads no more than a greeting may have, and writes nothing.
type recorder struct {
	net.Conn
	read []byte
	err  error // of the first read that failed
}

func (r *recorder) Read(p []byte) (int, error) {
	room := maxHelloBytes - len(r.read)
	if room == 0 {
		r.err = errHelloLong
		return 0, r.err
	}
	n, err := r.Conn.Read(p[:min(len(p), room)])
	r.read = append(r.read, p[:n]...)
	if err != nil && r.err == nil {
		r.err = err
	}
	return n, err
}

func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }

func (r *recorder) Close() error { return nil }

// replayed is a connection whose first bytes were read already.
type replayed struct {
	net.Conn
	first []byte
}

// Read gives the first bytes, then those of the connection. As with any connection, one reader at a time.
func (r *replayed) Read(p []byte) (int, error) {
	if len(r.first) == 0 {
		return r.Conn.Read(p)
	}
	n := copy(p, r.first)
	r.first = r.first[n:]
	if len(r.first) == 0 {
		r.first = nil
	}
	return n, nil
}
