package formation

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// Bounds that tests reach for.
const (
	MaxHellos      = maxHellos
	MaxHelloBytes  = maxHelloBytes
	MaxQueue       = maxQueue
	MaxLimited     = maxLimited
	FailuresAtOnce = failuresAtOnce
	FailureEvery   = failureEvery
)

// NewTLSListener is newTLSListener.
func NewTLSListener(l net.Listener, config *tls.Config) net.Listener {
	return newTLSListener(l, config)
}

// ReadHello is readHello.
func ReadHello(conn net.Conn, timeout time.Duration) ([]string, []byte, error) {
	return readHello(conn, timeout)
}

// Limiter is limiter with a clock.
type Limiter struct{ l *limiter }

// NewLimiter returns a limiter with a clock.
func NewLimiter(now func() time.Time) Limiter {
	l := newLimiter()
	l.now = now
	return Limiter{l}
}

// Allow is limiter.allow.
func (l Limiter) Allow(a netip.Addr) bool { return l.l.allow(a) }

// Fail is limiter.fail.
func (l Limiter) Fail(a netip.Addr) { l.l.fail(a) }

// Len is the number of addresses remembered.
func (l Limiter) Len() int { return len(l.l.clearAt) }

// Handler returns the HTTP API of a supervisor, without network and TLS.
func (s *Supervisor) Handler() http.Handler { return s.handler() }

// ReadProblem is readProblem.
func ReadProblem(r *http.Response) error { return readProblem(r) }

// ParseAuthority is parseAuthority.
func ParseAuthority(text []byte) (*x509.Certificate, error) { return parseAuthority(text) }

// SetNow gives a store another clock.
func (s *Secrets) SetNow(now func() time.Time) { s.now = now }
