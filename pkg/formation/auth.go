package formation

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/remedy"
)

// TokenStore finds tokens that expire.
type TokenStore interface {
	// Token returns the token with this id. Errors: ErrNoToken when there is none.
	Token(ctx context.Context, id string) (JoinToken, error)
}

// ErrNoToken tells that no token has this id.
var ErrNoToken = errors.New("no such token")

// PasswordStore remembers which machine has which name.
type PasswordStore interface {
	// Claim takes the name for the holder of the password, or checks that it is its own. Errors: ErrNameTaken.
	Claim(ctx context.Context, node, password string) error
	// Known tells whether the name has a holder.
	Known(ctx context.Context, node string) (bool, error)
}

// JoinToken is a token that lets agents join until it expires.
type JoinToken struct {
	ID          string    `json:"id"`
	Secret      string    `json:"-"`
	Expires     time.Time `json:"expires,omitzero"` // never when zero
	Description string    `json:"description,omitempty"`
}

// Text is what a joining node shows: the short form of the token.
func (t JoinToken) Text() string { return t.ID + "." + t.Secret }

// checkToken lets pass who may join: with the server token, the agent token, or one that has not expired.
// The files are read each time, so a rotated token counts at once.
func checkToken(ctx context.Context, p pki.Paths, store TokenStore, shown string, now time.Time) error {
	// Bounds and characters first; this says nothing about our tokens.
	token, err := pki.ParseToken(shown)
	if err != nil || token.CAHash() != "" {
		return wrongToken()
	}
	matches := false
	for _, file := range []string{p.ServerToken, p.AgentToken} {
		ours, err := pki.ReadToken(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if ours.Matches(token.Secret()) {
			matches = true // no return: the time must not tell which
		}
	}
	id, secret, expiring := token.Expiring()
	if matches || !expiring {
		if matches {
			return nil
		}
		return wrongToken()
	}
	known, err := store.Token(ctx, id)
	switch {
	case errors.Is(err, ErrNoToken):
		return wrongToken()
	case err != nil:
		return notReady(err)
	case !pki.SameSecret(known.Secret, secret):
		return wrongToken()
	case !known.Expires.IsZero() && now.After(known.Expires):
		return remedy.Wrap(fmt.Errorf("%w: it was good until %s, and by the clock of the server it is %s", ErrTokenExpired,
			known.Expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339)),
			"make a new one on a server with `atoll token create`")
	}
	return nil
}

func wrongToken() error {
	return remedy.Wrap(ErrWrongToken, "copy the token from <data-dir>/server/agent-token of a server, or make one there with `atoll token create`; it may have been deleted or rotated")
}

// notReady hides the cause from the client; the caller logs it.
func notReady(cause error) error {
	return remedy.Wrap(&notReadyError{cause}, "wait: it is tried again; if it lasts, run `atoll status` on the server")
}

type notReadyError struct{ cause error }

func (e *notReadyError) Error() string   { return ErrNotReady.Error() }
func (e *notReadyError) Unwrap() []error { return []error{ErrNotReady, e.cause} }

// nodeOf returns the name of the node whose kubelet's certificate the client shows.
func nodeOf(r *http.Request, p pki.Paths, now time.Time) (string, error) {
	const again = "remove <data-dir>/agent/tls on the node and start it again with a token"
	shown := peerCertificates(r)
	if len(shown) == 0 {
		return "", remedy.Wrap(fmt.Errorf("%w: none was shown", ErrCertificate), again)
	}
	authority, err := os.ReadFile(p.ClientCA.Cert)
	if err != nil {
		return "", err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	cert := shown[0]
	_, err = cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, CurrentTime: now})
	var invalid x509.CertificateInvalidError
	switch name, isNode := strings.CutPrefix(cert.Subject.CommonName, pki.UserNodePrefix); {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "", remedy.Wrap(fmt.Errorf("%w: it expired on %s, and by the clock of the server it is %s", ErrCertificate,
			cert.NotAfter.Format(time.DateOnly), now.UTC().Format(time.DateOnly)), again)
	case err != nil:
		return "", remedy.Wrap(fmt.Errorf("%w: another site has signed it", ErrCertificate), again)
	case !isNode || !slices.Contains(cert.Subject.Organization, pki.GroupNodes) || !pki.ValidNodeName(name):
		return "", remedy.Wrap(fmt.Errorf("%w: it is not that of a node", ErrCertificate), again)
	default:
		return name, nil
	}
}
