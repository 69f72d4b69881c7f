package formation_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
)

// kube answers for the Secrets of kube-system as an API server does, over HTTP, so that the real client is used.
type kube struct {
	*httptest.Server
	down atomic.Bool // answers 503

	mu      sync.Mutex
	secrets map[string]corev1.Secret
}

func startKube(t testing.TB) (*kube, corev1client.SecretsGetter) {
	t.Helper()
	k := &kube{secrets: map[string]corev1.Secret{}}
	const path = "/api/v1/namespaces/kube-system/secrets"
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+path, k.create)
	mux.HandleFunc("GET "+path, k.list)
	mux.HandleFunc("GET "+path+"/{name}", k.get)
	mux.HandleFunc("DELETE "+path+"/{name}", k.delete)
	k.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.down.Load() {
			fail(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(k.Close)
	client, err := corev1client.NewForConfig(&rest.Config{Host: k.URL, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json", AcceptContentTypes: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	return k, client
}

func reply(w http.ResponseWriter, status int, object any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(object)
}

func fail(w http.ResponseWriter, status int32, reason metav1.StatusReason) {
	reply(w, int(status), metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(status), Reason: reason,
	})
}

func (k *kube) create(w http.ResponseWriter, r *http.Request) {
	var s corev1.Secret
	if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	if _, taken := k.secrets[s.Name]; taken {
		fail(w, http.StatusConflict, metav1.StatusReasonAlreadyExists)
		return
	}
	for key, value := range s.StringData {
		if s.Data == nil {
			s.Data = map[string][]byte{}
		}
		s.Data[key] = []byte(value)
	}
	s.StringData = nil
	k.secrets[s.Name] = s
	reply(w, http.StatusCreated, s)
}

func (k *kube) list(w http.ResponseWriter, r *http.Request) {
	var l corev1.SecretList
	kind, _ := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "type=")
	for _, s := range k.secrets {
		if kind == "" || string(s.Type) == kind {
			l.Items = append(l.Items, s)
		}
	}
	reply(w, http.StatusOK, l)
}

func (k *kube) get(w http.ResponseWriter, r *http.Request) {
	s, ok := k.secrets[r.PathValue("name")]
	if !ok {
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	}
	reply(w, http.StatusOK, s)
}

func (k *kube) delete(w http.ResponseWriter, r *http.Request) {
	if _, ok := k.secrets[r.PathValue("name")]; !ok {
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	}
	delete(k.secrets, r.PathValue("name"))
	reply(w, http.StatusOK, metav1.Status{Status: metav1.StatusSuccess})
}

// change edits or removes (nil) a Secret.
func (k *kube) change(t testing.TB, name string, edit func(*corev1.Secret)) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	s, ok := k.secrets[name]
	if !ok {
		t.Fatalf("no Secret %s", name)
	}
	if edit == nil {
		delete(k.secrets, name)
		return
	}
	edit(&s)
	k.secrets[name] = s
}

func (k *kube) text() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var b strings.Builder
	for name, s := range k.secrets {
		b.WriteString(name)
		for key, value := range s.Data {
			b.WriteString(key + "=" + string(value))
		}
	}
	return b.String()
}
