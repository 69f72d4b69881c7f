package formation

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
	bootstraputil "k8s.io/cluster-bootstrap/token/util"

	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/remedy"
)

const (
	namespace = metav1.NamespaceSystem
	// The use that makes a bootstrap token one of ours. Without "authentication" the API server takes it for nothing, even with
	// bootstrap tokens switched on.
	joinUsage = bootstrapapi.BootstrapTokenUsagePrefix + "atoll-join"
	// Expired tokens are kept for a while, so that who shows one is told that it has expired.
	keepExpired = 7 * 24 * time.Hour

	passwordSuffix = ".node-password.atoll"
	passwordType   = corev1.SecretType("atoll/node-password")
	passwordSalt   = "salt"
	passwordHash   = "hash"
)

// Secrets keeps join tokens and the hashes of node passwords as Secrets in kube-system. It is a TokenStore and a PasswordStore.
type Secrets struct {
	client corev1client.SecretsGetter
	now    func() time.Time
}

// NewSecrets returns the store for a cluster.
func NewSecrets(client corev1client.SecretsGetter) *Secrets {
	return &Secrets{client: client, now: time.Now}
}

// CreateToken makes a token that lets agents join for ttl (for ever when zero), and removes those that expired long ago.
func (s *Secrets) CreateToken(ctx context.Context, ttl time.Duration, description string) (JoinToken, error) {
	if ttl < 0 || ttl > 100*365*24*time.Hour {
		return JoinToken{}, remedy.Wrap(fmt.Errorf("make a token: %s is no lifetime", ttl), "give a time like 30m or 24h, or 0 for a token that does not expire")
	}
	if err := s.prune(ctx); err != nil {
		return JoinToken{}, err
	}
	text, err := bootstraputil.GenerateBootstrapToken()
	if err != nil {
		return JoinToken{}, fmt.Errorf("make a token: %w", err)
	}
	id, secret, _ := strings.Cut(text, ".")
	t := JoinToken{ID: id, Secret: secret, Description: description}
	data := map[string]string{
		bootstrapapi.BootstrapTokenIDKey:     id,
		bootstrapapi.BootstrapTokenSecretKey: secret,
		joinUsage:                            "true",
	}
	if description != "" {
		data[bootstrapapi.BootstrapTokenDescriptionKey] = description
	}
	if ttl > 0 {
		t.Expires = s.now().Add(ttl).UTC().Truncate(time.Second)
		data[bootstrapapi.BootstrapTokenExpirationKey] = t.Expires.Format(time.RFC3339)
	}
	_, err = s.client.Secrets(namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: bootstraputil.BootstrapTokenSecretName(id), Namespace: namespace},
		Type:       bootstrapapi.SecretTypeBootstrapToken,
		StringData: data,
	}, metav1.CreateOptions{})
	if err != nil {
		return JoinToken{}, fmt.Errorf("store a token: %w", err)
	}
	return t, nil
}

// Token implements TokenStore.
func (s *Secrets) Token(ctx context.Context, id string) (JoinToken, error) {
	if !bootstraputil.IsValidBootstrapTokenID(id) {
		return JoinToken{}, ErrNoToken
	}
	secret, err := s.client.Secrets(namespace).Get(ctx, bootstraputil.BootstrapTokenSecretName(id), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return JoinToken{}, ErrNoToken
	}
	if err != nil {
		return JoinToken{}, fmt.Errorf("look up a token: %w", err)
	}
	t, ok := tokenIn(secret)
	if !ok || t.ID != id {
		return JoinToken{}, ErrNoToken
	}
	return t, nil
}

// Tokens lists the join tokens, those that expire first first.
func (s *Secrets) Tokens(ctx context.Context) ([]JoinToken, error) {
	secrets, err := s.client.Secrets(namespace).List(ctx, metav1.ListOptions{FieldSelector: "type=" + string(bootstrapapi.SecretTypeBootstrapToken)})
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	var tokens []JoinToken
	for i := range secrets.Items {
		if t, ok := tokenIn(&secrets.Items[i]); ok {
			tokens = append(tokens, t)
		}
	}
	slices.SortFunc(tokens, func(a, b JoinToken) int {
		switch {
		case a.Expires.Equal(b.Expires):
			return strings.Compare(a.ID, b.ID)
		case a.Expires.IsZero():
			return 1
		case b.Expires.IsZero():
			return -1
		}
		return a.Expires.Compare(b.Expires)
	})
	return tokens, nil
}

// DeleteToken removes a token, named by its id or in full. Errors: ErrNoToken.
func (s *Secrets) DeleteToken(ctx context.Context, idOrToken string) error {
	id := idOrToken
	if t, err := pki.ParseToken(idOrToken); err == nil {
		if part, _, ok := t.Expiring(); ok {
			id = part
		}
	}
	if !bootstraputil.IsValidBootstrapTokenID(id) {
		return remedy.Wrap(errors.New("delete a token: this is neither the id of a token nor a token"), "take an id from `atoll token list`")
	}
	if _, err := s.Token(ctx, id); err != nil { // deletes no Secret that is not ours
		return remedy.Wrap(fmt.Errorf("delete the token %s: %w", id, err), "take an id from `atoll token list`")
	}
	err := s.client.Secrets(namespace).Delete(ctx, bootstraputil.BootstrapTokenSecretName(id), metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete the token %s: %w", id, err)
	}
	return nil
}

func (s *Secrets) prune(ctx context.Context) error {
	tokens, err := s.Tokens(ctx)
	if err != nil {
		return err
	}
	for _, t := range tokens {
		if !t.Expires.IsZero() && s.now().Sub(t.Expires) > keepExpired {
			if err := s.DeleteToken(ctx, t.ID); err != nil && !errors.Is(err, ErrNoToken) {
				return err
			}
		}
	}
	return nil
}

// tokenIn reads a Secret; false when it is not a join token. A date that cannot be read counts as long past.
func tokenIn(secret *corev1.Secret) (JoinToken, bool) {
	get := func(key string) string { return string(secret.Data[key]) }
	t := JoinToken{
		ID:          get(bootstrapapi.BootstrapTokenIDKey),
		Secret:      get(bootstrapapi.BootstrapTokenSecretKey),
		Description: get(bootstrapapi.BootstrapTokenDescriptionKey),
	}
	if secret.Type != bootstrapapi.SecretTypeBootstrapToken || get(joinUsage) != "true" || !bootstraputil.IsValidBootstrapToken(t.Text()) ||
		secret.Name != bootstraputil.BootstrapTokenSecretName(t.ID) {
		return JoinToken{}, false
	}
	if date := get(bootstrapapi.BootstrapTokenExpirationKey); date != "" {
		var err error
		if t.Expires, err = time.Parse(time.RFC3339, date); err != nil {
			t.Expires = time.Unix(1, 0)
		}
	}
	return t, true
}

// PasswordSecret is the name of the Secret in kube-system that holds the hash of a node's password.
func PasswordSecret(node string) string { return node + passwordSuffix }

// Claim implements PasswordStore. Passwords are 128 random bits (pki.EnsureNodePassword), so one round of a salted hash is enough.
func (s *Secrets) Claim(ctx context.Context, node, password string) error {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt)
	wanted := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: PasswordSecret(node), Namespace: namespace},
		Type:       passwordType,
		Data:       map[string][]byte{passwordSalt: salt, passwordHash: []byte(hashPassword(salt, password))},
	}
	// Create first: of two machines that claim a name at once, the API server lets one.
	_, err := s.client.Secrets(namespace).Create(ctx, wanted, metav1.CreateOptions{})
	if err == nil {
		return nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("claim the name of a node: %w", err)
	}
	have, err := s.client.Secrets(namespace).Get(ctx, wanted.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("check the password of a node: %w", err)
	}
	if !pki.SameSecret(string(have.Data[passwordHash]), hashPassword(have.Data[passwordSalt], password)) {
		return remedy.Wrap(fmt.Errorf("%w: %s", ErrNameTaken, node),
			"give this machine another name with --node-name; if it replaces the old one, run `atoll kubectl -n kube-system delete secret %s` first", wanted.Name)
	}
	return nil
}

// Known implements PasswordStore.
func (s *Secrets) Known(ctx context.Context, node string) (bool, error) {
	_, err := s.client.Secrets(namespace).Get(ctx, PasswordSecret(node), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up a node: %w", err)
	}
	return true, nil
}

func hashPassword(salt []byte, password string) string {
	sum := sha256.Sum256(slices.Concat(salt, []byte(password)))
	return hex.EncodeToString(sum[:])
}
