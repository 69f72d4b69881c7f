// Package wire is a cable with bad manners: it passes Ethernet frames between two interfaces, late, limited in rate, or not at all.
//
// The kernel has netem for that, but many kernels do not. This is a process that takes frames from one interface and puts them on
// the other. Frames keep their order. Offloads work through it: frames carry the kernel's own note about checksums and segments.
package wire

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Quality is one direction of a line. The zero value is a perfect one.
type Quality struct {
	Delay  time.Duration `json:"delay,omitempty"`
	Jitter time.Duration `json:"jitter,omitempty"` // up to that much more delay, evenly spread
	Loss   float64       `json:"loss,omitempty"`   // share of frames, 0 to 1
	// BitsPerSecond limits the rate; 0 does not. Up to queueBytes wait, what comes on top is lost.
	BitsPerSecond int64 `json:"bitsPerSecond,omitempty"`
}

// Check returns an error when the quality makes no sense.
func (q Quality) Check() error {
	if q.Delay < 0 || q.Jitter < 0 || q.Loss < 0 || q.Loss > 1 || q.BitsPerSecond < 0 {
		return fmt.Errorf("line with delay %s, jitter %s, loss %g and %d bit/s: nothing may be negative, loss is 0 to 1",
			q.Delay, q.Jitter, q.Loss, q.BitsPerSecond)
	}
	return nil
}

const (
	queueBytes  = 1 << 20 // what a cheap router buffers
	queueFrames = 4096
	maxFrame    = 128 << 10 // with offloads, a frame stands for many
	headerBytes = 10        // struct virtio_net_hdr before each frame
)

// Run connects the interfaces a and b until ctx ends or one of them is gone.
func Run(ctx context.Context, a, b string, aToB, bToA Quality) error {
	sa, err := open(a)
	if err != nil {
		return err
	}
	defer unix.Close(sa)
	sb, err := open(b)
	if err != nil {
		return err
	}
	defer unix.Close(sb)
	// The first goroutine that ends takes the others with it: the process ends.
	g, ctx := errgroup.WithContext(ctx)
	for _, d := range []struct {
		from, to int
		name     string
		quality  Quality
	}{{sa, sb, a, aToB}, {sb, sa, b, bToA}} {
		queue := make(chan frame, queueFrames)
		g.Go(func() error { return receive(ctx, d.from, d.name, newLine(d.quality), queue) })
		g.Go(func() error { return send(ctx, d.to, queue) })
	}
	return g.Wait()
}

// open returns a socket that takes all frames which arrive at the interface, and none that leave it.
func open(name string) (fd int, err error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return 0, fmt.Errorf("find interface %s: %w", name, err)
	}
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open interface %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
			err = fmt.Errorf("open interface %s: %w", name, err)
		}
	}()
	for _, option := range []int{unix.PACKET_VNET_HDR, unix.PACKET_IGNORE_OUTGOING} {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, option, 1); err != nil {
			return fd, err
		}
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) // less works too
	promiscuous := unix.PacketMreq{Ifindex: int32(link.Index), Type: unix.PACKET_MR_PROMISC}
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &promiscuous); err != nil {
		return fd, err
	}
	// A read ends now and then, to look whether it is time to stop.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}); err != nil {
		return fd, err
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index})
}

// frame is on its way until due.
type frame struct {
	data []byte
	due  time.Time
}

func receive(ctx context.Context, fd int, name string, l *line, queue chan<- frame) error {
	buf := make([]byte, maxFrame)
	for ctx.Err() == nil {
		n, err := unix.Read(fd, buf)
		if err != nil {
			if _, gone := net.InterfaceByName(name); gone != nil {
				return fmt.Errorf("interface %s is gone: %w", name, err)
			}
			continue // nothing came, the link is down, or a frame of a kind that cannot be passed on
		}
		due, ok := l.admit(time.Now(), n-headerBytes)
		if !ok {
			continue
		}
		select {
		case queue <- frame{data: append([]byte(nil), buf[:n]...), due: due}:
		default: // full
		}
	}
	return ctx.Err()
}

func send(ctx context.Context, fd int, queue <-chan frame) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case f := <-queue:
			if wait := time.Until(f.due); wait > 0 {
				time.Sleep(wait)
			}
			_, _ = unix.Write(fd, f.data) // a link that is down loses the frame, as a cable would
		}
	}
}

// line decides what happens to each frame of one direction.
type line struct {
	Quality
	last time.Time // when the last frame is due
	free time.Time // when the last frame has left the sender
}

func newLine(q Quality) *line { return &line{Quality: q} }

// admit returns when a frame that was offered at now arrives, or false when it is lost.
func (l *line) admit(now time.Time, size int) (due time.Time, ok bool) {
	if l.Loss > 0 && rand.Float64() < l.Loss {
		return time.Time{}, false
	}
	sent := now
	if l.BitsPerSecond > 0 {
		if l.free.Before(now) {
			l.free = now
		}
		waiting := int64(l.free.Sub(now).Seconds() * float64(l.BitsPerSecond) / 8)
		if waiting > queueBytes {
			return time.Time{}, false
		}
		l.free = l.free.Add(time.Duration(float64(size) * 8 / float64(l.BitsPerSecond) * float64(time.Second)))
		sent = l.free
	}
	due = sent.Add(l.Delay)
	if l.Jitter > 0 {
		due = due.Add(rand.N(l.Jitter))
	}
	if due.Before(l.last) {
		due = l.last // frames do not overtake each other
	}
	l.last = due
	return due, true
}
