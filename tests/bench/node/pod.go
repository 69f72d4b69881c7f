package main

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/atollhq/atoll/tests/lab"
)

const pollEvery = 25 * time.Millisecond

func client(site *lab.Site) (kubernetes.Interface, error) {
	file, err := site.Kubeconfig()
	if err != nil {
		return nil, err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		return nil, err
	}
	cfg.QPS, cfg.Timeout = -1, 5*time.Second
	return kubernetes.NewForConfig(cfg)
}

// firstPod asks for a pod as soon as the API takes one, and returns when it runs.
func firstPod(ctx context.Context, site *lab.Site) (time.Time, error) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "first"},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: new(int64),
			Containers:                    []corev1.Container{{Name: "pause", Image: "registry.k8s.io/pause:3.10.2"}},
		},
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	created := false
	for {
		if c, err := client(site); err == nil {
			if !created {
				_, err := c.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
				created = err == nil || apierrors.IsAlreadyExists(err)
			} else if got, err := c.CoreV1().Pods("default").Get(ctx, pod.Name, metav1.GetOptions{}); err == nil && got.Status.Phase == corev1.PodRunning {
				return time.Now(), nil
			}
		}
		select {
		case <-ctx.Done():
			return time.Time{}, errors.New("the first pod did not run within 3 minutes")
		case <-time.After(pollEvery):
		}
	}
}

func deletePod(ctx context.Context, site *lab.Site) error {
	c, err := client(site)
	if err != nil {
		return err
	}
	return c.CoreV1().Pods("default").Delete(ctx, "first", metav1.DeleteOptions{})
}
