package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/cache"

	"github.com/atollhq/atoll/pkg/network/policy/cniplugin"
)

// attachment is a pod whose addresses the pod network told before the API knew them.
type attachment struct {
	uid, sandbox string
	addrs        []netip.Addr
}

// attachWithin is how long a pod may be held up. The plugin and kubelet wait longer.
const attachWithin = 10 * time.Second

// Attach makes the rules for a pod whose network was just set up, and returns when they are in force. The first container of
// the pod has not started then, so it never runs unprotected. On an error the pod must not start; kubelet tries again.
//
// uid is that of kubelet; sandbox is the id of the pod's sandbox, which Detach names again.
func (c *Controller) Attach(ctx context.Context, pod PodKey, uid, sandbox string, addrs []netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, attachWithin)
	defer cancel()
	c.mu.Lock()
	c.attached[pod] = attachment{uid, sandbox, addrs}
	c.mu.Unlock()
	for {
		next, err := c.roundAfterNow(ctx)
		if err != nil {
			return fmt.Errorf("wait for the network policies of pod %s: %w", pod, err)
		}
		// A pod that the cache does not have yet is in no rule. That only matters where its namespace has policies.
		policies, err := c.policyLister.NetworkPolicies(pod.Namespace).List(labels.Everything())
		if err != nil {
			return fmt.Errorf("list network policies: %w", err)
		}
		if len(policies) == 0 || c.knows(pod, uid) {
			return nil
		}
		select {
		case <-next:
		case <-ctx.Done():
			return fmt.Errorf("wait for pod %s to appear in the API: %w", pod, ctx.Err())
		}
	}
}

// Detach forgets what Attach was told, if it was about this sandbox.
func (c *Controller) Detach(pod PodKey, sandbox string) {
	c.mu.Lock()
	known := c.attached[pod].sandbox == sandbox
	if known {
		delete(c.attached, pod)
	}
	c.mu.Unlock()
	if known {
		c.poke()
	}
}

// roundAfterNow asks for a round and waits until one that began later is in force. The channel is closed after the next.
func (c *Controller) roundAfterNow(ctx context.Context) (next <-chan struct{}, err error) {
	c.mu.Lock()
	c.asked++
	mine := c.asked
	c.mu.Unlock()
	select {
	case c.urgent <- struct{}{}:
	default:
	}
	for {
		c.mu.Lock()
		done, round := c.inForce && c.done >= mine, c.round
		c.mu.Unlock()
		if done {
			return round, nil
		}
		select {
		case <-round:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// knows tells whether the cache has the pod. Kubelet knows a static pod by the hash of its file, the API does by a UID.
func (c *Controller) knows(key PodKey, uid string) bool {
	pod, err := c.podLister.Pods(key.Namespace).Get(key.Name)
	return err == nil && (uid == "" || sameUID(pod, uid))
}

func sameUID(pod *corev1.Pod, uid string) bool {
	return string(pod.UID) == uid || pod.Annotations[corev1.MirrorPodAnnotationKey] == uid
}

// podGone forgets the attachment of a pod that was deleted, in case its sandbox was never reported as gone.
func (c *Controller) podGone(obj any) {
	if tomb, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tomb.Obj
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return
	}
	key := PodKey{pod.Namespace, pod.Name}
	c.mu.Lock()
	defer c.mu.Unlock()
	if a, ok := c.attached[key]; ok && sameUID(pod, a.uid) {
		delete(c.attached, key)
	}
}

func (c *Controller) attachedAddresses() map[PodKey][]netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[PodKey][]netip.Addr, len(c.attached))
	for key, a := range c.attached {
		out[key] = a.addrs
	}
	return out
}

// serve answers the CNI plugin on the socket until ctx ends.
func (c *Controller) serve(ctx context.Context, wg *sync.WaitGroup) (stop func(), err error) {
	if err := os.Remove(c.cfg.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	listener, err := net.Listen("unix", c.cfg.Socket)
	if err != nil {
		return nil, fmt.Errorf("listen for the CNI plugin: %w", err)
	}
	if err := os.Chmod(c.cfg.Socket, 0o600); err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("listen for the CNI plugin: %w", err)
	}
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed by stop
			}
			wg.Go(func() { c.answer(ctx, conn) })
		}
	})
	return func() { _ = listener.Close() }, nil
}

// answer handles one connection: one request, one reply.
func (c *Controller) answer(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(attachWithin + 2*time.Second))
	var req cniplugin.Request
	if err := json.NewDecoder(conn).Decode(&req); err != nil {
		return
	}
	var reply cniplugin.Reply
	key := PodKey{req.Namespace, req.Pod}
	if req.Command == cniplugin.Detach {
		c.Detach(key, req.Sandbox)
	} else if err := c.Attach(ctx, key, req.UID, req.Sandbox, req.Addresses); err != nil {
		c.log.Warn("pod is not started before its policies are in force", "pod", key.String(), "err", err)
		reply.Error = err.Error()
	}
	_ = json.NewEncoder(conn).Encode(reply)
}
