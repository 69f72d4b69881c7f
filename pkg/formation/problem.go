package formation

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/atollhq/atoll/pkg/remedy"
)

// Refusals that callers decide on; use errors.Is.
var (
	ErrWrongToken   = errors.New("the token is not one of this site")
	ErrTokenExpired = errors.New("the token has expired")
	ErrNameTaken    = errors.New("the name is taken by another machine")
	ErrUnknownNode  = errors.New("the node is not a member of this site")
	ErrCertificate  = errors.New("the certificate of the node is not accepted")
	ErrTooMany      = errors.New("too many failed attempts")
	ErrNotReady     = errors.New("the server is not ready to take nodes")
	ErrBadRequest   = errors.New("the request makes no sense to the server")
)

// kind gives a refusal its status and the code by which the other side knows it.
type kind struct {
	err    error
	status int
	code   string
}

var kinds = []kind{
	{ErrWrongToken, http.StatusUnauthorized, "wrong-token"},
	{ErrTokenExpired, http.StatusUnauthorized, "token-expired"},
	{ErrCertificate, http.StatusUnauthorized, "certificate"},
	{ErrNameTaken, http.StatusForbidden, "name-taken"},
	{ErrUnknownNode, http.StatusForbidden, "unknown-node"},
	{ErrTooMany, http.StatusTooManyRequests, "too-many"},
	{ErrNotReady, http.StatusServiceUnavailable, "not-ready"},
	{ErrBadRequest, http.StatusBadRequest, "bad-request"},
}

// problem is the body of an error: RFC 9457 with two members of ours.
type problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
	Code   string `json:"code,omitempty"`
}

// writeProblem sends err to a client. What is not a refusal is an internal error; its text stays here, in the log.
func writeProblem(w http.ResponseWriter, err error) {
	p := problem{Status: http.StatusInternalServerError, Detail: "the server made a mistake", Remedy: "look at the log of the server"}
	for _, r := range kinds {
		if errors.Is(err, r.err) {
			p = problem{Status: r.status, Detail: err.Error(), Remedy: remedy.Of(err), Code: r.code}
			break
		}
	}
	p.Title = http.StatusText(p.Status)
	switch p.Status { // spread out, so that all boxes of a shop do not come back at once
	case http.StatusTooManyRequests:
		w.Header().Set("Retry-After", strconv.Itoa(5+rand.IntN(10)))
	case http.StatusServiceUnavailable: // an API server that starts takes seconds
		w.Header().Set("Retry-After", strconv.Itoa(1+rand.IntN(3)))
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // a client that is gone reads nothing
}

// isRefusal tells whether a client is at fault or has to wait; all else is a mistake of the server.
func isRefusal(err error) bool {
	return slices.ContainsFunc(kinds, func(k kind) bool { return errors.Is(err, k.err) })
}

// refusal is an error that the server sent.
type refusal struct {
	text  string
	err   error // one of the refusals, or nil
	after time.Duration
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.err }

// readProblem turns an answer that is not 200 into an error.
func readProblem(response *http.Response) error {
	var p problem
	kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
	if err == nil && kind == "application/problem+json" {
		err = json.Unmarshal(data, &p)
	}
	if err != nil || p.Detail == "" {
		return remedy.Wrap(fmt.Errorf("the server answered %s", printable(response.Status)), "check that the address is that of an atoll server")
	}
	r := &refusal{text: "the server refused: " + printable(p.Detail)}
	for _, known := range kinds {
		if known.code == p.Code {
			r.err = known.err
		}
	}
	if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil && seconds > 0 && seconds < 3600 {
		r.after = time.Duration(seconds) * time.Second
	}
	if p.Remedy == "" {
		return r
	}
	return remedy.Wrap(r, "%s", printable(p.Remedy))
}

// printable makes text from elsewhere safe for a log and a terminal.
func printable(s string) string {
	const longest = 500
	out := make([]rune, 0, min(len(s), longest))
	for _, c := range s {
		if len(out) == longest {
			break
		}
		if !strconv.IsPrint(c) {
			c = ' '
		}
		out = append(out, c)
	}
	return string(out)
}
