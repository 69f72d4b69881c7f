package hostcheck

import (
	"context"
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
)

func checkDataFolder(ctx context.Context, m *machine) finding {
	if m.DataDir == "" {
		return finding{}
	}
	dir := m.existing(m.DataDir)
	err := m.try(ctx, TryCreate, dir)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		f := fail("free some space: `du -xh "+m.DataDir+" | sort -h | tail` shows what takes it", "the disk of %s is full", m.DataDir)
		f.minor = true // a node that runs can still make room
		return f
	case errors.Is(err, syscall.EROFS):
		return fail("look into `dmesg` for errors of the disk, then mount -o remount,rw, or choose another folder with --data-dir", "%s is on a file system that is mounted read-only", m.DataDir)
	case err != nil:
		return fail("make it a folder that root can write to, or choose another with --data-dir", "cannot write into %s: %v", dir, err)
	}
	if space, err := m.System.Statfs(dir); err == nil && space.NoExec {
		return fail("mount it with exec, or choose another folder with --data-dir", "%s is on a file system that is mounted noexec, and programs are started from there", m.DataDir)
	}
	return ok("%s can be written to", m.DataDir)
}

const (
	minFree     = 2 << 30 // bytes; images and logs of a small shop
	evictsBelow = 5       // percent; the kubelet evicts pods from there on
)

func checkSpace(_ context.Context, m *machine) finding {
	if m.DataDir == "" {
		return finding{}
	}
	space, err := m.System.Statfs(m.existing(m.DataDir))
	const try = "free some space, or choose a folder on another disk with --data-dir"
	switch {
	case err != nil:
		return warn("check the disk", "cannot tell how full it is: %v", err)
	case space.Free*100 < space.Total*evictsBelow:
		return warn(try, "%s free of %s: below %d %% pods are evicted", size(space.Free), size(space.Total), evictsBelow)
	case space.Free < minFree:
		return warn(try, "%s free of %s, which is little for images", size(space.Free), size(space.Total))
	}
	return ok("%s free of %s", size(space.Free), size(space.Total))
}

func checkInodes(_ context.Context, m *machine) finding {
	if m.DataDir == "" {
		return finding{}
	}
	space, err := m.System.Statfs(m.existing(m.DataDir))
	switch {
	case err != nil:
		return finding{} // disk-space has said it
	case space.Inodes == 0:
		return ok("not limited")
	case space.FreeNodes*100 < space.Inodes*evictsBelow:
		return warn("remove what has many small files, or choose a folder on another disk with --data-dir", "%d free of %d: below %d %% pods are evicted", space.FreeNodes, space.Inodes, evictsBelow)
	}
	return ok("%d free of %d", space.FreeNodes, space.Inodes)
}

func checkOverlay(ctx context.Context, m *machine) finding {
	if m.DataDir == "" {
		return finding{}
	}
	dir := m.existing(m.DataDir)
	err := m.tryWith(ctx, []string{"overlay"}, TryOverlay, dir)
	if err == nil {
		return ok("works in %s", dir)
	}
	what, try := "does not work on the file system of "+m.DataDir+": "+err.Error(), "choose a folder on ext4 or XFS (made with ftype=1) with --data-dir, or use --snapshotter native, which needs more disk"
	switch {
	case missing(err):
		what, try = "the kernel does not have it", "modprobe overlay, boot a kernel with CONFIG_OVERLAY_FS, or use --snapshotter native, which needs more disk"
	case errors.Is(err, fs.ErrPermission):
		try = "in a container, start that with --privileged"
	}
	if m.Snapshotter != "" && m.Snapshotter != "overlayfs" {
		return note("", "%s; the snapshotter %s does not need it", what, m.Snapshotter)
	}
	f := fail(try, "%s", what)
	f.minor = errors.Is(err, syscall.ENOSPC)
	return f
}

func checkPropagation(_ context.Context, m *machine) finding {
	if m.KubeletDir == "" {
		return finding{}
	}
	mounts, err := m.mounts()
	if err != nil {
		return finding{} // cgroups has said it
	}
	var at *mountinfo.Info
	for _, i := range mounts { // of two at one place the later one is on top
		inside := i.Mountpoint == "/" || m.KubeletDir == i.Mountpoint || strings.HasPrefix(m.KubeletDir, i.Mountpoint+"/")
		if inside && (at == nil || len(i.Mountpoint) >= len(at.Mountpoint)) {
			at = i
		}
	}
	if at == nil || !strings.Contains(" "+at.Optional, " shared:") {
		point := "/"
		if at != nil {
			point = at.Mountpoint
		}
		return warn("mount --make-rshared "+point+", at every boot", "mounts below %s are private: storage drivers that mount volumes from a pod do not work", m.KubeletDir)
	}
	return ok("%s is shared", at.Mountpoint)
}

// size writes a number of bytes for people.
func size(n uint64) string {
	const gib, mib = 1 << 30, 1 << 20
	if n >= 10*gib {
		return strconv.FormatUint(n/gib, 10) + " GiB"
	}
	return strconv.FormatUint(n/mib, 10) + " MiB"
}
