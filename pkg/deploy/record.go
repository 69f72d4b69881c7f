package deploy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
)

// recordName is the ConfigMap in kube-system that holds the record, one key per file.
const recordName = "atoll-manifests"

// store keeps the record in the cluster. Servers share it; each changes only the entries that it works on.
type store struct {
	client kubernetes.Interface
}

// load returns the record; empty when there is none yet. Entries that cannot be read are left out: they are of a newer version,
// whose server takes care of them.
func (s store) load(ctx context.Context) (Record, error) {
	cm, err := s.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, recordName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return Record{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what was applied before: %w", err)
	}
	return decode(cm.Data), nil
}

func decode(data map[string]string) Record {
	out := Record{}
	for _, text := range data {
		var e Entry
		if json.Unmarshal([]byte(text), &e) == nil && e.Path != "" {
			out[e.Path] = e
		}
	}
	return out
}

// update changes entries of the record and returns all of it. change gets the entry as it is now (empty when new) and returns
// whether to keep it; it may be called more than once.
func (s store) update(ctx context.Context, paths []string, change func(*Entry) (keep bool)) (Record, error) {
	var out Record
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		cms := s.client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
		cm, err := cms.Get(ctx, recordName, metav1.GetOptions{})
		isNew := apierrors.IsNotFound(err)
		if isNew {
			cm = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: recordName, Namespace: metav1.NamespaceSystem, Annotations: map[string]string{
				"atoll.dev/about": "what was applied from the folders of manifests; written by atoll, do not change",
			}}}
		} else if err != nil {
			return err
		}
		record := decode(cm.Data)
		data := maps.Clone(cm.Data)
		if data == nil {
			data = map[string]string{}
		}
		for _, path := range paths {
			entry := record[path]
			entry.Path = path
			entry.Holders = maps.Clone(entry.Holders)
			if entry.Holders == nil {
				entry.Holders = map[string]Holder{}
			}
			if !change(&entry) {
				delete(data, recordKey(path))
				delete(record, path)
				continue
			}
			text, err := json.Marshal(entry)
			if err != nil {
				return err
			}
			data[recordKey(path)] = string(text)
			record[path] = entry
		}
		out = record
		if maps.Equal(data, cm.Data) {
			return nil
		}
		cm.Data = data
		if isNew {
			_, err = cms.Create(ctx, cm, metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) {
				return apierrors.NewConflict(corev1.Resource("configmaps"), recordName, err)
			}
			return err
		}
		_, err = cms.Update(ctx, cm, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("write down what is applied: %w", err)
	}
	return out, nil
}

var notInKey = regexp.MustCompile(`[^-._a-zA-Z0-9]+`)

// recordKey is a key of a ConfigMap that a person recognises and that no other path has.
func recordKey(path string) string {
	sum := sha256.Sum256([]byte(path))
	name := notInKey.ReplaceAllString(path, "-")
	if len(name) > 200 {
		name = name[:200]
	}
	return name + "-" + hex.EncodeToString(sum[:5])
}
