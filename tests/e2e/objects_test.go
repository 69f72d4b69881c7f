package e2e_test

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/atollhq/atoll/tests/images"
)

type podOption func(*corev1.Pod)

// pod is a pod with one container, called main, and the label app with the pod's name.
func pod(name, image string, options ...podOption) *corev1.Pod {
	grace := int64(5)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: "main", Image: image,
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("16Mi"),
				}},
			}},
		},
	}
	for _, o := range options {
		o(p)
	}
	return p
}

// hello is a web server on port 8080 that is Ready when it answers.
func hello(name string, options ...podOption) *corev1.Pod {
	probe := func(p *corev1.Pod) {
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, TimeoutSeconds: 5, ProbeHandler: corev1.ProbeHandler{
			HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(8080)},
		}}
	}
	return pod(name, images.Hello, append([]podOption{probe}, options...)...)
}

// tool is a client that waits to be used with exec.
func tool(name string, options ...podOption) *corev1.Pod { return pod(name, images.Tool, options...) }

func onto(node string) podOption {
	return func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node} }
}

func labelled(key, value string) podOption { return func(p *corev1.Pod) { p.Labels[key] = value } }

func env(name, value string) podOption {
	return func(p *corev1.Pod) {
		c := &p.Spec.Containers[0]
		c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: value})
	}
}

func limit(name corev1.ResourceName, value string) podOption {
	return func(p *corev1.Pod) {
		c := &p.Spec.Containers[0]
		if c.Resources.Limits == nil {
			c.Resources.Limits = corev1.ResourceList{}
		}
		c.Resources.Limits[name] = resource.MustParse(value)
	}
}

// volume mounts a volume into the container.
func volume(path string, source corev1.VolumeSource) podOption {
	return func(p *corev1.Pod) {
		name := fmt.Sprintf("v%d", len(p.Spec.Volumes))
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: source})
		c := &p.Spec.Containers[0]
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: path})
	}
}

func claim(path, name string) podOption {
	return volume(path, corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}})
}

// hostPath shows a folder of the node at the same place in the pod.
func hostPath(path string) podOption {
	return volume(path, corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path}})
}

func privileged(p *corev1.Pod) {
	yes := true
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &yes}
}

// privilegedLabels let a namespace run any pod.
var privilegedLabels = map[string]string{"pod-security.kubernetes.io/enforce": "privileged"}
