package registries

import (
	"errors"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// endpoint is one URL that containerd asks.
type endpoint struct {
	scheme, host string
	path         string // of the registry's API: /v2 unless override
	override     bool   // containerd must take the path as it is
}

func (e endpoint) url() string {
	return (&url.URL{Scheme: e.scheme, Host: e.host, Path: e.path}).String()
}

// hub is the server behind the name docker.io.
const hub = "registry-1.docker.io"

// serverOf returns the host that answers for a registry's name.
func serverOf(host string) string {
	if host == "docker.io" || host == "index.docker.io" {
		return hub
	}
	return host
}

// nameOf returns the registry's name in images, under which containerd looks for its folder.
func nameOf(host string) string {
	if serverOf(host) == hub {
		return "docker.io"
	}
	return host
}

// Folder names are made of hosts, so nothing but hosts may pass: no slash, no leading dot, and no leading underscore, as in _default.
var hostPattern = regexp.MustCompile(`^(?:[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?)*|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{1,5}))?$`)

// validHost tells whether s is a name or an address, with or without a port.
func validHost(s string) bool {
	m := hostPattern.FindStringSubmatch(s)
	if m == nil || len(s) > 255 {
		return false
	}
	if m[1] != "" {
		if addr, err := netip.ParseAddr(m[1]); err != nil || !addr.Is6() {
			return false
		}
	}
	if m[2] != "" {
		if port, err := strconv.Atoi(m[2]); err != nil || port < 1 || port > 65535 {
			return false
		}
	}
	return true
}

func checkHost(at place, section, host string) error {
	if host == Any || validHost(host) {
		return nil
	}
	if _, rest, ok := strings.Cut(host, "://"); ok {
		return at.wrong("write "+strings.TrimRight(rest, "/"), "%s: %q is an address, not the name of a registry", section, host)
	}
	return at.wrong("write it as in the names of images, such as registry.example.com:5000", "%s: %q is not a registry", section, host)
}

// endpoints returns where images of a registry are looked for before the registry itself, each once.
func (m Mirror) endpoints(host string) ([]endpoint, error) {
	var errs []error
	prefix, err := m.prefix(host)
	errs = append(errs, err)
	var out []endpoint
	for _, text := range m.Endpoints {
		e, err := m.parseEndpoint(host, text)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if prefix != "" {
			e.path, e.override = e.path+"/"+prefix, true
		}
		if !slices.Contains(out, e) {
			out = append(out, e)
		}
	}
	// Asked last, the registry itself is what comes after the mirrors anyway.
	if n := len(out); n > 0 && out[n-1] == (endpoint{scheme: "https", host: serverOf(host), path: "/v2"}) && !isLocal(host) {
		out = out[:n-1]
	}
	return out, errors.Join(errs...)
}

func (m Mirror) parseEndpoint(host, text string) (endpoint, error) {
	const example = "write it like https://mirror.example.com:5000"
	bad := func(try, what string) (endpoint, error) {
		return endpoint{}, m.at.wrong(try, "endpoint %q of %s %s", redactUser(text), host, what)
	}
	full := text
	if !strings.Contains(text, "://") {
		full = "//" + text
	}
	u, err := url.Parse(full)
	if err != nil {
		return bad(example, "is not a URL")
	}
	switch {
	case u.User != nil:
		return bad("give user name and password under configs, in auth of "+u.Host, "holds credentials")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return bad("remove what follows the path", "has more than a host and a path")
	case !validHost(u.Host):
		return bad(example, "has no host that is a name or an address")
	case !slices.Contains([]string{"", "http", "https"}, u.Scheme):
		return bad("use https:// or http://", "is neither http nor https")
	}
	e := endpoint{scheme: u.Scheme, host: serverOf(u.Host), path: strings.TrimRight(path.Clean(u.Path), "/")}
	if e.scheme == "" {
		e.scheme = "https"
		if port := u.Port(); isLocal(u.Host) && port != "" && port != "443" {
			e.scheme = "http" // as containerd does for a registry on the node itself
		}
	}
	switch e.path {
	case "", ".", "/v2":
		e.path = "/v2"
	default:
		e.override = true // as in K3s: who writes a path means it
	}
	return e, nil
}

// redactUser hides what stands before an @: an endpoint in an error message may hold a password.
func redactUser(text string) string {
	if i := strings.LastIndex(text, "@"); i >= 0 {
		return "..." + text[i:]
	}
	return text
}

func isLocal(host string) bool {
	u := url.URL{Host: host}
	if u.Hostname() == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(u.Hostname())
	return err == nil && addr.IsLoopback()
}

var (
	wholeName   = regexp.MustCompile(`^\^?(?:\(\.[*+]\))\$?$`)
	wholeResult = regexp.MustCompile(`^([a-z0-9._/-]*)\$(?:1|\{1\})$`)
	plainPrefix = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
)

// prefix returns the path that a rewrite of the mirror puts in front of every image name. containerd has no rewriting, but it joins
// the name to the endpoint's path, so that this much can be done; any other rewrite is an error.
func (m Mirror) prefix(host string) (string, error) {
	if len(m.Rewrites) == 0 {
		return "", nil
	}
	for pattern, replacement := range m.Rewrites {
		result := wholeResult.FindStringSubmatch(replacement)
		if pattern == "^" {
			result = []string{"", replacement}
		} else if !wholeName.MatchString(pattern) {
			result = nil
		}
		if len(m.Rewrites) != 1 || result == nil {
			break
		}
		if result[1] == "" && pattern != "^" {
			return "", nil // every name stays what it is
		}
		if name, ok := strings.CutSuffix(result[1], "/"); ok && plainPrefix.MatchString(name) {
			return name, nil
		}
	}
	return "", m.at.wrong(
		"offer the images on the mirror under their own names, or under one common path and write that into the endpoint, such as https://mirror.example.com/v2/proxy; the only rewrite that works is \"^(.*)$\": \"proxy/$1\"",
		"rewrite of %s cannot be done: only K3s' own build of containerd changes parts of image names", host)
}
